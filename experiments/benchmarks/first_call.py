"""LoRe's first call: seconds of a new process with an empty and with a filled compilation cache, and what the quick
search gives up against the full one.

A row's `seconds` are those of the first call of the quick search, `baseline_seconds` those of the full one.
"""

import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.measure import Result, result
from experiments.studies.planted_world import PlantedConfig, World, draw
from lore_jax.fitting import model_selection
from lore_jax.fitting.bradley_terry import LoReConfig
from pref_jax.files import read_json

USERS, FEATURES = 60, 32
# Of the process that is timed: imports, world and fit; it prints the seconds of the fit alone.
SCRIPT = f"from {__name__} import one_fit; one_fit({{!r}})"
SEARCHES = {"quick": LoReConfig.quick(), "full": LoReConfig()}
WORLDS: dict[str, dict[str, Any]] = {
    "one direction each": {"alpha": 0.1},
    "mixed tastes": {"alpha": 1.0},
    "all alike": {"alpha": None, "wrong": 0.2},
    "a fifth wrong": {"alpha": 0.1, "wrong": 0.2},
}


def first_call(
    seeds: int = 5, sizes: tuple[int, ...] = (60, 200), searches: tuple[str, str] = ("quick", "full")
) -> list[Result]:
    """First calls with an empty and with a filled cache; then the accuracies of both searches, world by world."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        caches = [os.path.join(folder, str(place)) for place in range(2)]
        times = [[_process(name, cache) for _ in range(2)] for name, cache in zip(searches, caches, strict=True)]
    for place, cache in enumerate(("empty cache", "filled cache")):
        quick, full = times[0][place], times[1][place]
        facts = {"process_seconds": quick["process"], "full_process_seconds": full["process"], "load": quick["load"]}
        size = f"{USERS} users, {FEATURES} features, {cache}"
        rows.append(result("first_call", size, full["fit"], quick["fit"], **facts))
    return rows + [_compared(name, users, seeds) for users in sizes for name in WORLDS]


def start_up(rounds: int = 5) -> list[Result]:
    """Seconds of new processes that import or ask for help, beside one that imports ml_collections alone."""
    python = [sys.executable, "-c"]
    baseline = _fastest([*python, "import ml_collections"], rounds)
    commands = {
        "import configs.quickstart": [*python, "import configs.quickstart"],
        "import configs.compare_small": [*python, "import configs.compare_small"],
        "import pref_jax, lore_jax, copl_jax": [*python, "import pref_jax, lore_jax, copl_jax"],
        "pref --help": [sys.executable, "-m", "pref_jax.cli", "--help"],
    }
    return [result("start_up", name, baseline, _fastest(command, rounds)) for name, command in commands.items()]


def quickstart(variant: str = "") -> list[Result]:
    """The quickstart as `make quickstart` starts it, in a new process with an empty compilation cache.

    `baseline_seconds` are those that its methods took, as its `results.json` has them; the rest is start-up, the
    world, the pretrained decoder and the report.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, load = os.path.join(folder, "run"), os.getloadavg()[0]
        command = ["-m", "experiments.quickstart", f"--config=configs/quickstart.py:{variant}", f"--workdir={out}"]
        # As the Makefile has it.
        seconds, _ = _python(command, os.path.join(folder, "cache"), GLIBC_TUNABLES="glibc.malloc.hugetlb=1")
        rows = read_json(os.path.join(out, "results.json"))["rows"]
    metrics = {row["method"]: row["metrics"]["seen/accuracy"] for row in rows}
    methods = sum(row["seconds"] for row in rows)
    return [result("quickstart", variant or "one seed", methods, seconds, load=load, seen_accuracy=metrics)]


def _fastest(command: list[str], rounds: int) -> float:
    spans = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        spans.append(time.perf_counter() - start)
    return min(spans[1:])


def one_fit(search: str) -> None:
    """Prints the seconds of the first fit of this process."""
    world = _world(USERS, 0, alpha=0.3)
    start = time.perf_counter()
    _fit(world, search)
    print(time.perf_counter() - start)


def _process(search: str, cache: str) -> dict[str, float]:
    """Seconds of a new process and of the fit in it, and the machine's load before (1 min average)."""
    load = os.getloadavg()[0]
    script = f"from pref_jax import compile_cache; compile_cache.enable(); {SCRIPT.format(search)}"
    seconds, told = _python(["-c", script], cache)
    return {"process": seconds, "fit": float(told.split()[-1]), "load": load}


def _python(arguments: list[str], cache: str, **environment: str) -> tuple[float, str]:
    """Seconds of a new Python process that keeps programs in the folder `cache`, and what it printed."""
    own = {**os.environ, **environment, "PREF_JAX_CACHE": cache}
    own.pop("JAX_COMPILATION_CACHE_DIR", None)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=own, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - start, done.stdout


def _world(users: int, seed: int, **options: Any) -> World:
    sizes = {"seen": users, "unseen": 50, "tests": 50, "responses": 600, "features": FEATURES, "directions": 5}
    return draw(PlantedConfig(**{"pairs": 15, "wrong": 0.0, **sizes, **options}), seed)


def _fit(world: World, search: str) -> Any:
    config = SEARCHES[search]
    found = model_selection.fit(world.features, world.train, world.validation, world.num_seen, config=config)
    return found._replace(basis=found.basis.block_until_ready())


def _compared(name: str, users: int, seeds: int) -> Result:
    """Accuracy of seen and unseen users' true preferences on new responses, by search, the mean over seeds."""
    accuracy: dict[str, list[list[float]]] = {search: [] for search in SEARCHES}
    seconds, kinds = dict.fromkeys(SEARCHES, 0.0), {search: [] for search in SEARCHES}
    for seed in range(seeds):
        world = _world(users, seed, **WORLDS[name])
        for search in SEARCHES:
            _fit(world, search)
            start = time.perf_counter()
            found = _fit(world, search)
            seconds[search] += (time.perf_counter() - start) / seeds
            kinds[search].append(found.kind)
            unseen = model_selection.adapt(found, world.features, world.context, world.num_unseen)
            weights = jnp.concatenate([found.weights, unseen])
            right = np.asarray(model_selection.predict(found, world.features, weights, world.test)) > 0
            seen = world.seen[world.test.user]
            accuracy[search].append([float(right[side].mean()) for side in (seen, ~seen)])
    facts: dict[str, Any] = {f"{search}_kinds": kinds[search] for search in SEARCHES}
    for search, values in accuracy.items():
        facts[f"{search}_seen"], facts[f"{search}_unseen"] = np.mean(values, 0).tolist()
    loss = np.subtract(accuracy["full"], accuracy["quick"])
    facts["lost_seen"], facts["lost_unseen"] = loss.mean(0).tolist()
    facts["lost_standard_error"] = (loss.std(0, ddof=1) / np.sqrt(seeds)).tolist()
    return result("first_call", f"{users} users, {name}, compiled", seconds["full"], seconds["quick"], **facts)
