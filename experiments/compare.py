"""The whole road: tables, backbone, every method of the config, one table with intervals.

    python -m experiments.compare --config=configs/crowdrag.py --config.source.path=../shared/data/crowdrag \\
        --workdir=runs/crowdrag
    python -m experiments.compare --config=configs/compare_small.py --workdir=runs/compare --publish=RESULTS.md

A config with `datasets` holds a config for each of several data sets; each runs in WORKDIR/NAME as it would alone, then
WORKDIR gets `results.json`, `table.md`, `table.tex`, `report.md` and `plots/` of all. Killed at any moment, the same
command goes on where it was.
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags

from experiments.methods import METHODS
from experiments.prepare import prepare_votes
from experiments.reporting import table, table_files
from experiments.reporting.checks import checked
from experiments.reporting.summary import summarise
from experiments.reporting.table import DataSet
from experiments.runner.cli import Config, check_workdir, launch
from experiments.runner.test_labels import answered
from experiments.runner.workspace import log, workspaces
from pref_jax import compile_cache
from pref_jax.errors import UserError
from pref_jax.locks import hold

# Seconds for which another process may hold the whole workdir, to look at its config.
SHORTLY = 10.0


def run(config: Config, workdir: Path, publish: str = "", only: Sequence[str] = ()) -> None:
    """Every method for every seed, of one data set or of several, then the report; answers are read last.

    With `only`, the methods of those data sets alone, and no table: so that several processes share the work.
    """
    if "datasets" in config:
        _run_all(config, workdir, publish, only)
        return
    if publish or only:
        raise UserError("--publish and --only are for tables of several data sets; give a config with `datasets`")
    train(config, workdir)
    summarise(config, workdir)


def train(config: Config, workdir: Path) -> None:
    """Runs every method of `config.methods` for every seed, up to margins of test pairs whose answers are hidden."""
    unknown = [name for name in config.methods if name not in METHODS]
    if unknown:
        raise UserError(f"config.methods: unknown {', '.join(unknown)}; known: {', '.join(METHODS)}")
    for work in workspaces(config, workdir):
        prepare_votes(work)
        checked(work)
        for name in config.methods:
            METHODS[name].run(work)


def _run_all(config: Config, workdir: Path, publish: str, only: Sequence[str]) -> None:
    start = time.perf_counter()
    there, absent = table.present(config)
    if unknown := [name for name in only if name not in there]:
        raise UserError(f"--only={','.join(unknown)}: no such data set here; there are {', '.join(there)}")
    chosen = {name: own for name, own in there.items() if not only or name in only}
    keep = compile_cache.kept_in(workdir / "compiled") if config.keep_compiled else contextlib.nullcontext()
    with keep, _held(config, workdir, list(chosen), only=bool(only)):
        for name, own in chosen.items():
            log(f"{name}: {own.dataset}")
            train(own, workdir / name)
        if not only:
            _tabulate(config, workdir, there, absent, start)
            if publish:
                table_files.publish(workdir, Path(publish), ["experiments.compare", *sys.argv[1:]])


@contextlib.contextmanager
def _held(config: Config, workdir: Path, names: Sequence[str], *, only: bool) -> Iterator[None]:
    """The folders of the data sets for this process alone; unless others share the work, the workdir too."""
    with contextlib.ExitStack() as held:
        with hold(workdir, wait=SHORTLY):
            check_workdir(workdir, config)
            for name in names:
                held.enter_context(hold(workdir / name))
            if not only:
                held.enter_context(hold(workdir))
        yield


def _tabulate(
    config: Config, workdir: Path, there: Mapping[str, Config], absent: Mapping[str, str], start: float
) -> None:
    # From here on test answers are read; no method runs any more.
    every = [
        DataSet(name, own, workdir / name, [answered(work) for work in workspaces(own, workdir / name)])
        for name, own in there.items()
    ]
    for one in every:
        summarise(one.config, one.folder, every=one.every)
    table_files.write(config, workdir, every, absent, seconds=time.perf_counter() - start)


def define(values: flags.FlagValues) -> None:
    """The experiment's own flags."""
    flags.DEFINE_string(
        "publish", "", "a file such as RESULTS.md that gets the table of all data sets", flag_values=values
    )
    flags.DEFINE_list(
        "only",
        [],
        "data sets to run the methods of, by commas, and write no table; run one first where they share a decoder",
        flag_values=values,
    )


if __name__ == "__main__":
    launch(run, __doc__ or "", define=define)
