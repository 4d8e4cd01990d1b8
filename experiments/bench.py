"""Measured figures: our code against the reference recipe, on this machine, in one run.

    python -m experiments.bench gcf_recipe --out=runs/bench.json
    python -m experiments.bench all --out=runs/bench.json

Each benchmark compiles first and is timed afterwards; the compile time is told apart. The file is a list of
{"name", "size", "baseline_seconds", "seconds", "ratio", "extra"} with ratio = baseline / ours, one for each size of
each benchmark. Results of benchmarks that are not run this time stay in it.
"""

import sys
from pathlib import Path

from absl import flags

from experiments.benchmarks import (
    adapt,
    asking,
    backbone,
    device,
    experts,
    first_call,
    fuzz,
    graph,
    invariance,
    joint,
    loading,
    online,
    prefix,
    prepare,
    ragged,
    sampling,
    service_crash,
    service_hostile,
    service_load,
    solver,
    store_crash,
    store_speed,
)
from experiments.benchmarks.measure import Benchmark, Result, merged, read, table
from pref_jax.errors import UserError
from pref_jax.files import write_json

# The last three need the extra `parity`: where it is missing, the others have been measured before that is told.
BENCHMARKS: dict[str, Benchmark] = {
    "gcf_recipe": graph.gcf_recipe,
    "gcf_paper_size": graph.gcf_paper_size,
    "gcf_scale": graph.gcf_scale,
    "gcf_layers": graph.gcf_layers,
    "first_call": first_call.first_call,
    "start_up": first_call.start_up,
    "quickstart": first_call.quickstart,
    "lore_solve": solver.lore_solve,
    "heavy_tail": ragged.heavy_tail,
    "lore_online": online.lore_online,
    "lore_active": asking.lore_active,
    "adapt": adapt.adapt_unseen,
    "prepare": prepare.prepare,
    "fuzz": fuzz.fuzz,
    "store_speed": store_speed.store_speed,
    "store_crash": store_crash.store_crash,
    "experts": experts.mixture_step,
    "prefix_pairs": prefix.prefix_pairs,
    "invariance": invariance.invariance,
    "service_load": service_load.service_load,
    "service_crash": service_crash.service_crash,
    "service_hostile": service_hostile.service_hostile,
    "sampling": sampling.sampling,
    "backbone_step": backbone.backbone_step,
    "load_memory": loading.load_memory,
    "lore_fit": joint.lore_fit,
    "device": device.device,
}


def main() -> None:
    """Runs the benchmarks named on the command line, prints a table and writes the file."""
    values = flags.FlagValues()
    out = flags.DEFINE_string("out", None, "JSON file to write", flag_values=values)
    if {"--help", "-h"} & set(sys.argv):
        print(f"{(__doc__ or '').strip()}\n\nbenchmarks: all, {', '.join(BENCHMARKS)}")
        return
    try:
        names = _names(values(sys.argv)[1:])
        _run(names, Path(out.value) if out.value else None)
    except (UserError, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _names(given: list[str]) -> list[str]:
    if given == ["all"]:
        return list(BENCHMARKS)
    unknown = [name for name in given if name not in BENCHMARKS]
    if unknown or not given:
        raise UserError(f"benchmarks: {unknown or 'none named'}; give all, or some of {', '.join(BENCHMARKS)}")
    return given


def _run(names: list[str], out: Path | None) -> None:
    """Measures, and writes after each benchmark, so that one that fails takes nothing of the others with it."""
    old = [] if out is None else read(out)
    results: list[Result] = []
    try:
        for name in names:
            print(f"{name} ...", flush=True)
            results += BENCHMARKS[name]()
            if out is not None:
                write_json(out, merged(old, results, list(BENCHMARKS)))
    finally:
        if results:
            print(table(results))


if __name__ == "__main__":
    main()
