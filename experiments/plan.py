"""Does it fit, and how long will it take? Compiles the programs of a run for a machine that is not there.

    make plan                            # the compilers, in a folder beside the environment
    python -m experiments.plan --config=configs/copl.py:gemma_2b,tpu_v5e_8 --workdir=runs/plan
    python -m experiments.plan --config=configs/copl.py:gemma_2b,h200 --only="reward step" --workdir=runs/plan_h200

Writes WORKDIR/plan.json and plan.md: memory of a device, operations of matrix products and bytes counted through all
loops, what is sent between devices, and the time of a call by the peaks of the data sheet, which a real run does not
reach. Nothing is downloaded for the bases that `experiments/planning/bases.json` knows; of others config.json is.

`--search` also tries micro-batches, meshes and what the backward pass keeps, and proposes the fastest step that fits.
"""

import dataclasses
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import flags

from experiments.planning import compilers, hardware, report, search
from experiments.planning.planned_workspace import open_planned
from experiments.planning.programs import Sizes, programs
from experiments.runner.cli import Config, launch
from pref_jax.errors import UserError
from pref_jax.files import write_json, write_text
from pref_jax.progress import log

SIZES = Sizes()


def run(config: Config, workdir: Path, **own: Any) -> None:
    """Compiles what is asked for and writes the plan."""
    machine = hardware.find(machine_name(own["hardware"], sys.argv))
    asked = {field.name: own[field.name] for field in dataclasses.fields(Sizes)}
    sizes = Sizes(**{**asked, "tokens": own["tokens"] or config.backbone.max_length or SIZES.tokens})
    with tempfile.TemporaryDirectory() as base:
        about, rows = _compiled(config, machine, sizes, Path(base), own["only"], search_too=own["search"])
    write_json(workdir / "plan.json", {**about, "programs": rows})
    write_text(workdir / "plan.md", report.markdown(about, rows))
    log(f"{workdir / 'plan.md'}")


def _compiled(
    config: Config, machine: hardware.Hardware, sizes: Sizes, base: Path, only: list[str], *, search_too: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the plan is of, and a row for each program."""
    work = open_planned(config, machine, base)
    found = programs(work, sizes)
    if unknown := sorted(set(only) - set(found)):
        raise UserError(f"--only={','.join(unknown)}: no such program; there are {', '.join(found)}")
    rows = []
    for name in only or found:
        log(f"{name}, for {machine.name} ...")
        planned = found[name]()
        compiled = compilers.compile_for(planned, machine)
        rows.append(report.row(name, planned, compiled, machine))
        log(f"  {report.sentence(rows[-1])}")
    about = report.about(config, machine, sizes, work)
    if search_too:
        about["search"] = search.best_step(config, machine, sizes, base)
    return about, rows


def machine_name(asked: str, argv: list[str]) -> str:
    """The machine of the flag, else the one that the config's variant names."""
    if asked:
        return asked
    words = [word for arg in argv if arg.startswith("--config=") for word in re.split("[:,]", arg)]
    named = [word for word in words if word in hardware.HARDWARE]
    if not named:
        raise UserError(f"no machine: give --hardware=NAME, one of {', '.join(hardware.HARDWARE)}")
    return named[0]


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("hardware", "", "machine; without it the one that the config names", flag_values=values)
    flags.DEFINE_list("only", [], "programs, by commas; without it all", flag_values=values)
    flags.DEFINE_boolean("search", False, "look for the fastest step that fits", flag_values=values)
    told = {"tokens": "of a text; 0 as the config has it", "shared": "of them that a pair's texts share"}
    for name, usual in dataclasses.asdict(SIZES).items():
        default, text = 0 if name == "tokens" else usual, told.get(name, "of the data set")
        flags.DEFINE_integer(name, default, text, flag_values=values, lower_bound=0)


def main() -> None:
    """Starts again with the machine's compiler, then plans."""
    if not {"--help", "-h", "-help"} & set(sys.argv):
        try:
            asked = [arg.split("=", 1)[1] for arg in sys.argv if arg.startswith("--hardware=")]
            compilers.enter(hardware.find(machine_name(asked[0] if asked else "", sys.argv)))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
    launch(run, __doc__ or "", define=_define)


if __name__ == "__main__":
    main()
