"""The training loop: restore, step, score, save; killed at any moment, the same call goes on where it was."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from pref_jax.errors import UserError
from pref_jax.mesh import batch_sharding, make_mesh, put_batch, replicated
from pref_jax.progress import log
from pref_jax.train import preemption
from pref_jax.train.checkpoint import Checkpoints, KeepConfig
from pref_jax.train.logging import MetricsLog
from pref_jax.train.state import Metrics, StepFn, TrainState

# Steps in a row without a finite loss and gradient, after which a training ends.
MOST_SKIPPED = 20
# Users of a batch that a message names.
_NAMED = 8


def fit(
    *,
    name: str,
    state: TrainState,
    frozen: Any,
    step: StepFn,
    batches: grain.MapDataset,
    folder: str | Path,
    mesh: Mesh | None = None,
    checkpoint_every: int = 0,
    log_every: int = 10,
    evaluate: Callable[[TrainState], Mapping[str, SupportsFloat]] | None = None,
    evaluate_every: int = 0,
    keep: KeepConfig | None = None,
    tensorboard: bool = True,
    wandb: str | None = None,
    consume: bool = False,
) -> TrainState:
    """Trains for `len(batches)` steps, from the newest checkpoint in `folder`/checkpoints if there is one.

    Batch i feeds step i. On one kind of device a run killed and started again ends in the same bits, parameters and
    `metrics.jsonl` alike. A finished fit returns at once from its last checkpoint, which is always written. A SIGTERM
    ends the process with exit code 143 after a checkpoint of the step under way (`pref_jax.train.preemption`).

    Args:
      name: stands in logs and progress; one folder holds the checkpoints of one name.
      state: where to begin; leaves sharded over `mesh` stay so, others are replicated.
      frozen: tree of arrays (or None) that the step reads and does not change; placed like `state`.
      step: `make_step`'s; handing in the same function again saves its compilation.
      batches: random access to trees of host arrays, each leading with B.
      folder: gets `checkpoints/`, `metrics.jsonl` and `tensorboard/`.
      mesh: the devices; by default the mesh `state` lies on, or else the first device alone.
      checkpoint_every: steps between checkpoints; 0 writes the last one only.
      log_every: steps between lines of `metrics.jsonl`; a line holds means over the steps since the one before, and
        `skipped`, the number of steps left out for a loss or gradient that was not finite. The last step has a line.
      evaluate: scores a state (not to be kept: the next step takes its memory); logged as "eval/...".
      evaluate_every: steps between evaluations, which the last step always gets.
      keep: which checkpoints stay; with `keep.best` each evaluation is followed by a checkpoint.
      tensorboard: whether to write event files.
      wandb: project in Weights & Biases, if wanted.
      consume: let the steps take the memory of `state`, which is then unusable; by default it is copied first.

    Returns:
      The state after the last step, on the mesh.

    Raises:
      UserError: if the folder holds other or longer training, a checkpoint is damaged or does not fit, the batch size
        and the mesh do not agree, or `MOST_SKIPPED` steps in a row had a loss or gradient that was not finite.
    """
    folder, total = Path(folder), len(batches)
    mesh = mesh or _mesh_of(state)
    state = _place(state, mesh, copy=not consume)
    with Checkpoints(folder / "checkpoints", keep=keep) as checkpoints:
        state, window = _resume(checkpoints, state, name, total)
        start = int(state.step)
        if start == total:
            return state
        frozen = _place(frozen, mesh)
        compiled = jit_step(step, state, frozen, mesh)
        stopped = 0
        with contextlib.ExitStack() as stack:
            end = stack.enter_context(preemption.watch())
            # Models pin activations to the batch axes of this mesh; else the compiler may gather whole batches.
            stack.enter_context(jax.set_mesh(mesh))
            feed = stack.enter_context(_feed(batches, start, mesh))
            scores = stack.enter_context(_Scores(name, folder, start, total, log_every, window, tensorboard, wandb))
            scores.describe = lambda done: _described(batches[done - 1], checkpoints)
            for done, batch in enumerate(feed, start + 1):
                with jax.transfer_guard("disallow"):
                    state, metrics = compiled(state, frozen, batch)
                scores.add(done, metrics)
                evaluation = None
                if evaluate is not None and _due(done, evaluate_every, total):
                    evaluation = scores.evaluated(done, evaluate(state))
                stopped = done if done < total and end.asked(done) else 0
                best = bool(evaluation and keep is not None and keep.best)
                if best or stopped or _due(done, checkpoint_every, total):
                    # Lines up to this step are in the file before the checkpoint is, so a resumed run lacks none.
                    metadata = {"name": name, "num_steps": total, "window": scores.flush()}
                    checkpoints.save(state, metadata, evaluation)
                if stopped:
                    break
    if stopped:
        checkpoints.wait()
        log(f"{name}: asked to end (SIGTERM), saved after step {stopped} of {total}; the same command goes on")
        raise SystemExit(preemption.EXIT_CODE)
    return state


def _described(batch: Any, checkpoints: Checkpoints) -> str:
    """Whose votes a batch holds, where it says so, and where the last checkpoint is."""
    users = batch.get("user") if isinstance(batch, Mapping) else None
    named = [] if users is None else sorted({int(user) for user in users})
    more = ", ..." if len(named) > _NAMED else ""
    told = f"its batch is of users {', '.join(map(str, named[:_NAMED]))}{more}; " if named else ""
    latest = checkpoints.latest()
    kept = "there is no checkpoint" if latest is None else f"the last checkpoint is {checkpoints.folder / str(latest)}"
    return f"{told}{kept}"


def jit_step(step: StepFn, state: TrainState, frozen: Any, mesh: Mesh) -> Callable[..., tuple[TrainState, Metrics]]:
    """Compiles a step for a mesh: states in and out lie alike, batches are cut over data and fsdp, and the incoming
    state's memory is given over to the outgoing one."""
    places = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(
        step,
        in_shardings=(places, jax.tree.map(lambda x: x.sharding, frozen), batch_sharding(mesh)),
        out_shardings=(places, replicated(mesh)),
        donate_argnums=0,
    )


def _due(done: int, every: int, total: int) -> bool:
    return done == total or (every > 0 and done % every == 0)


def _mesh_of(state: TrainState) -> Mesh:
    for leaf in jax.tree.leaves(state):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return make_mesh(devices=jax.devices()[:1])


def _place(tree: Any, mesh: Mesh, *, copy: bool = False) -> Any:
    """Puts leaves that lie elsewhere on the whole mesh; leaves that lie on it stay, or are copied where they are."""

    def place(leaf):
        here = getattr(leaf, "sharding", None)
        there = here if isinstance(here, NamedSharding) and here.mesh == mesh else replicated(mesh)
        if here == there and not copy:
            return leaf
        if jax.process_count() == 1:
            return jax.device_put(leaf, there, may_alias=False if copy else None)
        # Across hosts only a compiled program may write to devices of another process.
        return jax.jit(jnp.copy, out_shardings=there)(leaf)

    return jax.tree.map(place, tree)


def _resume(checkpoints: Checkpoints, state: TrainState, name: str, total: int) -> tuple[TrainState, dict[str, Any]]:
    """The newest checkpoint's state and half-filled window of scores, or `state` and an empty one."""
    restored = checkpoints.restore(state)
    if restored is None:
        return state, {}
    state, metadata = restored
    if metadata.get("name") != name:
        raise UserError(
            f"{checkpoints.folder}: holds checkpoints of {metadata.get('name')!r}, not of {name!r}; "
            "give each fit a folder of its own"
        )
    if int(state.step) > total:
        raise UserError(
            f"{checkpoints.folder}: already trained for {int(state.step)} steps, {total} are asked for; "
            "ask for at least as many, or use another folder"
        )
    return state, metadata["window"]


@contextlib.contextmanager
def _feed(batches: grain.MapDataset, start: int, mesh: Mesh) -> Iterator[Iterator[Any]]:
    """Batches from `start` on, on the mesh. A thread prepares the next ones while the device computes."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    rows = iter(batches.to_iter_dataset(options))
    rows.set_state({"next_index": start})
    with contextlib.closing(rows):
        yield (put_batch(batch, mesh) for batch in rows)


class _Scores:
    """Takes each step's metrics one step late, so that the device never waits, and writes means of them."""

    def __init__(
        self,
        name: str,
        folder: Path,
        start: int,
        total: int,
        log_every: int,
        window: dict[str, Any],
        tensorboard: bool,
        wandb: str | None,
    ):
        self._name, self._total, self._log_every = name, total, log_every
        self._sums: dict[str, float] = dict(window.get("sums", {}))
        self._steps: int = window.get("steps", 0)
        self._skipped: int = window.get("skipped", 0)
        self._late: tuple[int, Metrics] | None = None
        self._bad = 0
        self.describe: Callable[[int], str] = lambda done: ""
        self._log = None
        if jax.process_index() == 0:
            self._log = MetricsLog(folder, name=name, step=start, tensorboard=tensorboard, wandb=wandb)
        # disable=None: no bar unless a person looks at a terminal.
        self._bar = tqdm(desc=name, total=total, initial=start, disable=None if self._log else True)
        self._clock = (start, time.perf_counter())

    def __enter__(self) -> "_Scores":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self.flush()
        self._bar.close()
        if self._log is not None:
            self._log.close()

    def add(self, done: int, metrics: Metrics) -> None:
        """Keeps this step's metrics, still being computed, and counts those of the step before."""
        self.flush()
        self._late = (done, metrics)

    def flush(self) -> dict[str, Any]:
        """Counts the metrics kept back; returns what a resumed run needs to go on within a line's window."""
        if self._late is not None:
            done, metrics = self._late
            self._late = None
            self._count(done, {key: float(value) for key, value in jax.device_get(metrics).items()})
        return {"sums": self._sums, "steps": self._steps, "skipped": self._skipped}

    def evaluated(self, done: int, evaluation: Mapping[str, SupportsFloat]) -> dict[str, float]:
        """Writes an evaluation's line, after the lines before it."""
        self.flush()
        scores = {key: float(value) for key, value in evaluation.items()}
        if self._log is not None:
            self._log.write(done, {f"eval/{key}": value for key, value in scores.items()})
        return scores

    def _count(self, done: int, metrics: dict[str, float]) -> None:
        # A skipped step's scores would make every mean NaN: it is counted and left out of them.
        self._bad = self._bad + 1 if metrics.get("skipped") else 0
        if self._bad >= min(MOST_SKIPPED, self._total):
            raise UserError(
                f"{self._name}: loss or gradient was not finite in {self._bad} steps in a row, up to step {done}; "
                f"{self.describe(done)}. Lower the learning rate, or use float32"
            )
        if metrics.pop("skipped", 0.0):
            self._skipped += 1
            metrics = dict.fromkeys(metrics, 0.0)
        else:
            self._steps += 1
        self._sums = {key: self._sums.get(key, 0.0) + value for key, value in metrics.items()}
        self._bar.update(1)
        if _due(done, self._log_every, self._total):
            self._write(done)

    def _write(self, done: int) -> None:
        means = {key: total / self._steps if self._steps else None for key, total in self._sums.items()}
        now = time.perf_counter()
        speed = (done - self._clock[0]) / max(now - self._clock[1], 1e-9)
        if self._log is not None:
            self._log.write(done, {**means, "skipped": self._skipped}, only_shown={"steps_per_second": speed})
        if means.get("loss") is not None:
            self._bar.set_postfix(loss=f"{means['loss']:.4g}")
        self._sums, self._steps, self._skipped, self._clock = {}, 0, 0, (done, now)
