"""A plan's programs on the devices at hand: seconds and memory beside the plan's, and beside transformers with PEFT.

`baseline_seconds` are those at best by the plan, from the data sheet's peaks, or on other devices from peaks measured
just before; `ratio` is the share of them that is reached. On CPUs it can be above 1: what stays in the caches is never
moved. Of a reward step `extra` also holds what transformers and PEFT take for the same shapes on the same device, where
torch sees it.
"""

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import reference
from experiments.benchmarks.measure import Result, forget_peak, in_new_process, in_turns, memory, result
from experiments.planning import compilers, hardware
from experiments.planning.planned_workspace import open_planned
from experiments.planning.programs import Planned, Sizes, programs
from pref_jax.errors import UserError

# What is configured for each kind of device.
CONFIGS = {"cpu": "copl:cpu", "gpu": "copl:gemma_2b,h200", "tpu": "copl:gemma_2b,tpu_v5e_8"}
PROGRAMS = ("features", "scoring", "reward step")
CALLS = 5


def device(config: str = "", names: Sequence[str] = PROGRAMS, tokens: int = 0) -> list[Result]:
    """A row for each program, each in a process of its own.

    Args:
      config: file of `configs` and variant, "copl:gemma_2b,h200"; "": what is configured for this kind of device.
      names: of programs, see `experiments.planning.programs`.
      tokens: of a text; 0: as the config has it.
    """
    config = config or CONFIGS[jax.default_backend()]
    rows = []
    for name in names:
        told: dict[str, Any] = in_new_process(__name__, "measure", config, name, tokens)
        size = f"{name}, {told.pop('does')}, {config}"
        rows.append(result("device", size, told.pop("planned_seconds"), told.pop("seconds"), **told))
        if name == "reward step":
            rows[-1]["extra"]["peft"] = _peft(config, tokens)
    return rows


def measure(config: str, name: str, tokens: int) -> dict[str, Any]:
    """Seconds and memory of one program, planned and real; called in a process that has run nothing else."""
    machine = hardware.here()
    with tempfile.TemporaryDirectory() as folder:
        planned = _planned(config, name, tokens, Path(folder), machine)
        run = planned.lowered.compile()
        plan = compilers.costs(run, machine, 0.0)
        given = jax.block_until_ready(_arguments(planned.lowered, run))
        arguments = sum(leaf.nbytes for leaf in jax.tree.leaves(given) if hasattr(leaf, "nbytes"))
        forget_peak()
        before = memory().get("VmRSS", 0) - arguments
        carried = any(jax.tree.leaves(jax.tree.map(lambda leaf: leaf.donated, planned.lowered.args_info)))

        def call() -> Any:
            found = run(*given)
            if carried:  # a step takes the memory of its state
                given[0] = found[0]
            return found

        (seconds,) = in_turns([call], rounds=1, each=CALLS)
        stats = jax.devices()[0].memory_stats() or {}
        real = stats.get("peak_bytes_in_use") or memory().get("VmHWM", 0) - before
    assert plan.estimate is not None, "what does not fit has not run"
    return {
        "does": f"{planned.rows} {planned.unit}",
        "seconds": seconds,
        "planned_seconds": plan.estimate.seconds,
        "utilisation": plan.estimate.products / seconds,
        "peak_bytes": real,
        "planned_peak_bytes": plan.peak,
        "memory_ratio": real / plan.peak,
        "chip": machine.chip.name,
        "devices": machine.devices,
    }


def _configured(config: str) -> Any:
    file, _, variant = config.partition(":")
    return importlib.import_module(f"configs.{file}").get_config(variant)


def _planned(config: str, name: str, tokens: int, folder: Path, machine: hardware.Hardware) -> Planned:
    own = _configured(config)
    if own.mesh.get("data", 1) != -1:
        own.mesh.update({"data": -1})
    work, length = open_planned(own, machine, folder), tokens or own.backbone.max_length
    found = programs(work, Sizes(users=1000, responses=1000, votes=10_000, tokens=length))
    if name not in found:
        raise UserError(f"{config} has no program {name!r}; it has {', '.join(found)}")
    return found[name]()


def _arguments(lowered: jax.stages.Lowered, run: jax.stages.Compiled) -> list[Any]:
    """Arrays of the shapes that a program takes, where it takes them: numbers drawn at random, first ids, True."""
    # Static arguments are no part of it.
    shapes, places = lowered.args_info[0], run.input_shardings[0]
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(shapes))))

    def make(leaf: Any, place: Any) -> jax.Array:
        key = next(keys)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.split(key, leaf.shape) if leaf.shape else key, place)
        if jnp.issubdtype(leaf.dtype, jnp.floating):

            def draw() -> jax.Array:
                return 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)
        else:

            def draw() -> jax.Array:
                return jnp.full(leaf.shape, leaf.dtype == jnp.bool_, leaf.dtype)

        return jax.jit(draw, out_shardings=place)()

    return list(jax.tree.map(make, shapes, places))


def _peft(config: str, tokens: int) -> dict[str, Any]:
    """Seconds and memory of a step of transformers and PEFT of the same shapes, or why there are none."""
    try:
        return in_new_process(__name__, "measure_peft", config, tokens)
    except (RuntimeError, UserError) as error:
        return {"not_measured": str(error).strip().splitlines()[-1]}


def measure_peft(config: str, tokens: int) -> dict[str, Any]:
    """A step of as many pairs in as many micro-batches; called in a process of its own.

    Raises:
      UserError: if torch is not installed, or does not see the device that JAX sees.
    """
    torch, own = reference.library("torch"), _configured(config)
    place = "cpu" if jax.default_backend() == "cpu" else "cuda"
    if place == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no GPU; install a build of it for CUDA")
    length, batch = tokens or own.backbone.max_length, own.reward.batch_size
    with tempfile.TemporaryDirectory() as folder:
        work = open_planned(own, hardware.here(), Path(folder))
        lm, half = work.text.config, own.backbone.dtype == "bfloat16"
        family = {"rank": 8, "alpha": 16.0, "pooling": lm.pooling, "device": place, "half": half}
        model = reference.fresh(Path(work.text.name), **family)
    if own.reward.remat == "full":
        model.trunk.enable_input_require_grads()
        model.trunk.gradient_checkpointing_enable()
    rows = 2 * batch // own.reward.accumulate
    texts = reference.rows(np.ones((rows, length), np.int32), np.ones((rows, length), bool))
    texts = reference.Rows(*(part.to(place) for part in texts))
    step = reference.train_step(model, texts, rate=1e-4, decay=0.0)
    (seconds,) = in_turns([step], rounds=1, each=CALLS)
    real = torch.cuda.max_memory_allocated() if place == "cuda" else memory().get("VmHWM", 0)
    return {"seconds": seconds * own.reward.accumulate, "peak_bytes": real, "torch": torch.__version__}
