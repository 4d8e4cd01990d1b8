"""Plans of machines that are not there, and what they come to beside counts by hand."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from configs import copl
from experiments import plan
from experiments.planning import compilers, hardware, program_cost, programs, search
from experiments.planning.hlo_text import parse
from experiments.planning.packages import packages
from experiments.planning.planned_workspace import BASES, open_planned
from experiments.planning.programs import Sizes
from pref_jax.errors import UserError
from pref_jax.lm import backbone
from pref_jax.mesh import make_mesh

ROOT = Path(__file__).parents[2]
SMALL = Sizes(users=40, responses=60, votes=200, tokens=64)


def _on_cpu(config, tmp_path, devices=1):
    """A planned workspace on this machine's devices."""
    work = open_planned(config, hardware.find("h200"), tmp_path)
    work.__dict__["mesh"] = make_mesh(**config.mesh.to_dict(), devices=jax.devices()[:devices])
    return work


def _small_gemma(tmp_path, **changes) -> Any:
    config: Any = copl.get_config("gemma_2b,h200")
    base = json.loads(BASES.read_text())["google/gemma-2b-it"]
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 32}
    base |= sizes | {"num_hidden_layers": 3, "vocab_size": 512} | changes
    folder = tmp_path / "gemma"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(base))
    config.backbone.update({"name": str(folder), "dtype": "float32", "max_length": 64})
    config.graph.dim = 32
    config.reward.update({"batch_size": 16, "accumulate": 2})
    return config


@pytest.mark.parametrize(("remat", "devices"), [("none", 1), ("full", 1), ("full", 8)])
def test_a_steps_operations_are_those_counted_by_hand(tmp_path, remat, devices):
    config = _small_gemma(tmp_path)
    config.reward.remat = remat
    config.mesh.update({"data": 1, "fsdp": devices})
    work = _on_cpu(config, tmp_path, devices)
    planned = programs.reward_step(work, SMALL)
    found = program_cost.count(parse(planned.lowered.compile().as_text()))
    lm, tokens = work.text.config, 16 * 2 * SMALL.tokens
    forward = programs.forward_operations(lm, tokens, SMALL.tokens)
    assert planned.useful == 2 * forward
    shapes = backbone.linear_shapes(lm)
    # A user's expert and the one that all share, forward, by inputs and by weights.
    adapters = sum(2 * 2 * tokens * 8 * sum(shapes[name]) * lm.num_layers for name in ("q_proj", "v_proj"))
    # A block's last product is of no use to its backward pass.
    last = 2 * tokens * math.prod(shapes["down_proj"]) * lm.num_layers
    again = forward - last + adapters if remat == "full" else 0
    assert found.unknown_loops == []
    assert found.operations * devices == pytest.approx(2 * forward + 3 * adapters + again, rel=0.05)


def test_the_memory_of_a_plan_is_that_of_the_program_that_runs(tmp_path):
    config = _small_gemma(tmp_path)
    work = _on_cpu(config, tmp_path)
    planned = programs.text_features(work, SMALL)
    found = compilers.compile_for(planned, hardware.find("h200"))
    params = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(programs.base_shapes(work)))
    assert found.fits
    assert found.arguments == pytest.approx(params + config.backbone.batch_size * SMALL.tokens * 5, rel=0.01)
    assert found.peak >= found.arguments + found.temporaries


def test_every_method_of_a_config_has_its_programs(tmp_path):
    config = _small_gemma(tmp_path)
    config.methods = ("CoPL", "deep LoRe")
    config.deep.update({"users_per_batch": 4, "pairs_per_user": 2, "accumulate": 2})
    found = programs.programs(_on_cpu(config, tmp_path), SMALL)
    assert list(found) == ["graph round", "reward step", "scoring", "deep LoRe step", "features", "solver"]
    for make in found.values():
        planned = make()
        assert planned.rows > 0
        assert planned.lowered.as_text()


def test_texts_that_begin_alike_are_read_once(tmp_path):
    work = _on_cpu(_small_gemma(tmp_path), tmp_path)
    apart = programs.reward_step(work, SMALL)
    together = programs.reward_step(work, Sizes(users=40, responses=60, votes=200, tokens=64, shared=48))
    assert together.useful is not None
    assert apart.useful is not None
    assert together.useful < 0.7 * apart.useful


def test_batches_that_do_not_come_out_even_are_refused(tmp_path):
    config = _small_gemma(tmp_path)
    config.reward.accumulate = 3
    with pytest.raises(UserError, match="16 rows of a step in 3 micro-batches"):
        programs.reward_step(_on_cpu(config, tmp_path), SMALL)
    with pytest.raises(UserError, match="fewer tokens are shared"):
        Sizes(tokens=8, shared=8)


def _imagined(mesh, remat, accumulate):
    """A step whose cost is known: whole copies take room, cutting them costs time in each micro-batch."""
    rows = 16 / accumulate
    weights, each = 8 / mesh["fsdp"], {"dots": 4, "full": 1}[remat]
    products = {"dots": 6.0, "full": 8.0}[remat]
    seconds = products + 0.1 * accumulate * (mesh["fsdp"] - 1)
    return {
        "mesh": mesh,
        "remat": remat,
        "accumulate": accumulate,
        "peak_bytes": weights + rows * each,
        "temporary_bytes": rows * each,
        "room": weights + rows * each <= 16,
        "estimate_products": products,
        "estimate_seconds": seconds,
    }


def test_the_search_finds_the_fastest_step_in_few_attempts():
    every = [
        _imagined(mesh, remat, 1 << power) for mesh in search.meshes(8) for remat in search.KEPT for power in range(5)
    ]
    fastest = min((one for one in every if one["room"]), key=lambda one: one["estimate_seconds"])
    found = search.search(_imagined, 128, 8, 16)
    assert found["best"]["estimate_seconds"] == fastest["estimate_seconds"]
    assert found["best"]["mesh"]["fsdp"] == 1
    assert len(found["tried"]) < 0.6 * len(every)
    assert all(one["accumulate"] <= 16 for one in found["tried"])
    # What recomputes everything takes longer in its products alone; it is looked at once.
    assert sum(one["remat"] == "full" for one in found["tried"]) <= 2
    with pytest.raises(UserError, match="no step fits this machine"):
        search.search(lambda *own: {**_imagined(*own), "room": False}, 128, 8, 16)


@pytest.mark.parametrize("kind", ["tpu", "cuda"])
def test_compilers_are_those_of_the_installed_jax(kind):
    assert all("==" in one or one.startswith("nvidia-") for one in packages(kind))


def test_machines_are_taken_from_the_flag_or_the_variant():
    assert plan.machine_name("", ["plan", "--config=configs/copl.py:gemma_2b,h200"]) == "h200"
    assert plan.machine_name("h100", ["plan", "--config=configs/copl.py:gemma_2b,h200"]) == "h100"
    with pytest.raises(UserError, match="--hardware=NAME, one of tpu_v5e_8"):
        plan.machine_name("", ["plan", "--config=configs/copl.py"])
    with pytest.raises(UserError, match="--hardware=v9: unknown"):
        hardware.find("v9")


def test_without_a_compiler_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("PREF_PLAN", raising=False)
    with pytest.raises(UserError, match="`make plan` installs it"):
        compilers.enter(hardware.find("h200"), tmp_path)


def _plan(tmp_path, *arguments):
    command = [sys.executable, "-m", "experiments.plan", f"--workdir={tmp_path / 'plan'}", *arguments]
    own = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=own, check=False)


def _need(kind):
    if not (ROOT / ".plan" / kind).is_dir():
        pytest.skip("no compilers in .plan; `make plan` installs them")


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "kind"), [("tpu_v5e_8", "tpu"), ("h200", "cuda")])
def test_every_program_compiles_for_a_machine_that_is_not_there(tmp_path, machine, kind):
    _need(kind)
    tokens = 256 if kind == "tpu" else 64  # from there on rows are read by the kernel
    sizes = ("--users=100", "--responses=200", "--votes=800", f"--tokens={tokens}")
    done = _plan(tmp_path, f"--config=configs/copl.py:gemma_2b,{machine},smoke", *sizes)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert found["hardware"] == machine
    assert found["devices"] == hardware.find(machine).devices
    rows = {row["program"]: row for row in found["programs"]}
    assert list(rows) == ["graph round", "reward step", "scoring", "features", "solver"]
    for row in rows.values():
        assert row["fits"]
        assert 0 < row["peak_bytes"] < found["peaks"]["memory"]
        assert row["estimate_seconds"] > 0
    for name in ("reward step", "scoring", "features"):
        row = rows[name]
        assert row["unknown_loops"] == 0
        assert row["attention"] == ("splash (Pallas)" if kind == "tpu" else "products that write all scores")
        assert 0.9 < row["operations"] * found["devices"] / row["useful_operations"] < 4
    assert (sum(rows["reward step"]["sent_bytes"].values()) > 0) == (found["devices"] > 1)
    assert "| reward step | 8 pairs |" in (tmp_path / "plan" / "plan.md").read_text()


ATTENTION = """
import jax, jax.numpy as jnp
from experiments.planning import hardware, program_cost
from experiments.planning.hlo_text import parse
from pref_jax.lm import attention
from pref_jax.mesh import make_mesh

def total(q, k, v, allowed):
    return jnp.sum(attention.attend(q, k, v, allowed, scale=0.1).astype(jnp.float32) ** 2)

half = [jax.ShapeDtypeStruct((8, 256, heads, 64), jnp.bfloat16) for heads in (8, 2, 2)]
with jax.set_mesh(make_mesh(devices=hardware.devices(hardware.find("MACHINE")))):
    lowered = jax.jit(jax.grad(total, (0, 1, 2))).lower(*half, jax.ShapeDtypeStruct((8, 1, 256, 256), jnp.bool_))
work = program_cost.count(parse(lowered.compile().as_text()))
print(*work.kernels)
print(work.operations / (2 * 8 * 256 * 8 * 64 * 256))
"""


@pytest.mark.parametrize(
    ("machine", "kernel", "products"),
    # On eight chips a chip has a row; its two kernels of the backward pass make the weights again.
    [("h200", "__cudnn$fmhaScaleBiasSoftmaxBackward", 2 + 5), ("tpu_v5e_8", "tpu_custom_call", (2 + 3 + 4) / 8)],
)
def test_long_rows_are_read_by_the_machines_own_attention(machine, kernel, products):
    kind = hardware.find(machine).kind
    _need(kind)
    env = {**os.environ, **compilers.environment(hardware.find(machine), (ROOT / ".plan" / kind).resolve())}
    env.pop("XLA_FLAGS", None)
    command = [sys.executable, "-c", ATTENTION.replace("MACHINE", machine)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    kernels, counted = done.stdout.splitlines()[-2:]
    assert kernel in kernels.split()
    assert float(counted) == pytest.approx(products, rel=0.01)


def test_unknown_programs_and_machines_end_with_one_message(tmp_path):
    _need("cuda")
    done = _plan(tmp_path, "--config=configs/copl.py:smoke,h200", "--only=reward")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "--only=reward: no such program" in done.stderr
    done = _plan(tmp_path, "--config=configs/copl.py:smoke", "--hardware=abacus")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "--hardware=abacus: unknown" in done.stderr
