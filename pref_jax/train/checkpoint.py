"""Checkpoints of a training run, and whole trees of arrays as results of a stage, on Orbax v1.

A checkpoint is a folder named by its step. Orbax writes it under another name and renames it when it is whole, so a
killed run leaves whole checkpoints only. Two parts are kept apart, `params` and `rest`, so that later stages read the
parameters alone. Each part is a flat dict, path -> array: a checkpoint knows no Python classes.
"""

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding
from orbax.checkpoint import v1 as orbax_v1

from pref_jax.errors import Faults, UserError
from pref_jax.train.state import TrainState

# Orbax's own type hints refuse pathlib's paths and Orbax's own policies, so none of them are checked here.
ocp: Any = orbax_v1

# Stands in each part, because Orbax refuses trees without leaves; its value is the version of this layout.
_MARK = "/layout"
_LAYOUT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepConfig:
    """Which checkpoints stay.

    Attributes:
      newest: the newest ones, at least 1.
      best: name of the metric by which one more, the best of all, is kept; None keeps none. Of equals the newest.
      highest: whether the best value is the highest one.
    """

    newest: int = 2
    best: str | None = None
    highest: bool = True

    def __post_init__(self):
        if self.newest < 1:
            raise UserError(f"KeepConfig: newest={self.newest}; keep at least 1, a run resumes from it")


class Checkpoints:
    """The checkpoints of one run in one folder. Use as a context manager, or call `close`."""

    def __init__(self, folder: str | Path, *, keep: KeepConfig | None = None):
        self.folder = Path(folder).resolve()
        self._keep = keep or KeepConfig()
        policies = ocp.training.preservation_policies
        kept = [policies.LatestN(self._keep.newest)]
        if self._keep.best is not None:
            kept.append(
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics.get("best", -np.inf),
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        with _orbax(self.folder, "open"):
            self._series = ocp.training.Checkpointer(
                self.folder,
                context=_context(),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def latest(self) -> int | None:
        """The newest whole checkpoint's step, or None."""
        newest = self._series.latest
        return None if newest is None else newest.step

    def save(self, state: TrainState, metadata: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Starts writing `state`; it is copied before this returns, so its arrays may be donated at once.

        Args:
          state: the state; its step names the checkpoint. A step that is there already is left as it is.
          metadata: what the host wants back beside the arrays; JSON values.
          metrics: the evaluation's scores, of which `KeepConfig.best` picks.
        """
        step = int(state.step)
        if step == self.latest():
            return
        score = None if metrics is None or self._keep.best is None else metrics.get(self._keep.best)
        if score is not None and np.isfinite(score):
            scores = {"best": float(score) if self._keep.highest else -float(score)}
        else:
            scores = None
        parts = {"params": _flatten(state.params), "rest": _flatten(_rest(state))}
        with _orbax(self.folder, "write"):
            self._series.save_checkpointables_async(step, parts, metrics=scores, custom_metadata={"host": metadata})

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint, bit for bit, with the structure, dtypes and shardings of `like`; None without one.

        Raises:
          UserError: if the checkpoint is damaged or does not fit `like`.
        """
        step = self.latest()
        if step is None:
            return None
        folder = self.folder / str(step)
        with _orbax(folder, "read"):
            info = self._series.checkpointables_metadata(step)
        if "host" not in (info.custom_metadata or {}):
            raise _damaged(folder, "its metadata is missing")
        parts = {"params": like.params, "rest": _rest(like)}
        for name, part in parts.items():
            _check_fit(folder, info.metadata.get(name), part)
        with _orbax(folder, "read"):
            loaded = self._series.load_checkpointables(step, {name: _abstract(part) for name, part in parts.items()})
        rest = _unflatten(loaded["rest"], parts["rest"])
        key = jax.random.wrap_key_data(rest.pop("key"), impl=jax.random.key_impl(like.key))
        state = TrainState(params=_unflatten(loaded["params"], like.params), key=key, **rest)
        return jax.tree.map(_at, state, like), info.custom_metadata["host"]

    def wait(self) -> None:
        """Waits until the checkpoint being written is whole.

        Raises:
          UserError: if it could not be written.
        """
        with _orbax(self.folder, "write"):
            self._series.wait()

    def close(self) -> None:
        """Waits, then lets Orbax's threads go."""
        with _orbax(self.folder, "write"):
            self._series.close()


def restore_params(folder: str | Path, like: Any = None, *, best: bool = False) -> Any:
    """The parameters alone of a run's newest or best checkpoint.

    Args:
      folder: the run's `checkpoints` folder.
      like: tree of arrays or `jax.ShapeDtypeStruct` that tells structure and shardings; without it nested dicts come
        back, on the first device.
      best: take the checkpoint with the best score, where scores were kept, else the newest.

    Raises:
      UserError: if there is no checkpoint, or it is damaged, or does not fit `like`.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; run the stage that trains these parameters, or fix the path")
    with _orbax(folder, "open"):
        series = ocp.training.Checkpointer(folder, context=_context())
    with contextlib.closing(series):
        found = list(series.checkpoints)
        if not found:
            raise UserError(f"{folder}: no whole checkpoint in it; run the stage that trains these parameters")
        scored = [item for item in found if item.metrics]
        chosen = max(scored, key=lambda item: (item.metrics["best"], item.step)) if best and scored else found[-1]
        return _load(folder / str(chosen.step), "params", like)


def save_tree(folder: str | Path, tree: Any) -> None:
    """Writes a pytree of JAX and NumPy arrays as `folder`, in place of what was there; if killed, whole or absent."""
    folder = Path(folder).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        for part in folder.parent.glob(f"{folder.name}.orbax-checkpoint-tmp*"):
            shutil.rmtree(part, ignore_errors=True)
    with _orbax(folder, "write"), _context():
        ocp.save_checkpointables(folder, {"tree": _flatten(tree)}, overwrite=True)


def load_tree(folder: str | Path, like: Any = None) -> Any:
    """Reads what `save_tree` wrote, bit for bit.

    Args:
      folder: the folder.
      like: as in `restore_params`; its NumPy arrays come back as such. Without it each array is of the kind saved.

    Raises:
      UserError: if the folder is missing, damaged or does not fit `like`.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; run the stage that writes it, or fix the path")
    return _load(folder, "tree", like)


def _load(folder: Path, part: str, like: Any) -> Any:
    with _orbax(folder, "read"), _context():
        stored = ocp.checkpointables_metadata(folder).metadata.get(part)
    if like is not None:
        _check_fit(folder, stored, like)
        with _orbax(folder, "read"), _context():
            return _unflatten(ocp.load_checkpointables(folder, {part: _abstract(like)})[part], like)
    if stored is None:
        raise _damaged(folder, f"no part {part!r} in it")
    abstract = {name: _want(leaf) for name, leaf in stored.items()}
    with _orbax(folder, "read"), _context():
        flat = ocp.load_checkpointables(folder, {part: abstract})[part]
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        if name != _MARK:
            *path, last = name.split("/")
            node = tree
            for key in path:
                node = node.setdefault(key, {})
            node[last] = leaf
    return tree


def _rest(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "key": jax.random.key_data(state.key)}


def _names(tree: Any) -> list[tuple[str, Any]]:
    """Path and array of each leaf; Python's and NumPy's scalars become NumPy arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            leaf if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else np.asarray(leaf),
        )
        for path, leaf in leaves
    ]


def _flatten(tree: Any) -> dict[str, Any]:
    # Arrays without elements are left out, Orbax refuses them; `like` brings them back.
    mark = np.full((1,), _LAYOUT, np.int32)
    return {_MARK: mark, **{name: leaf for name, leaf in _names(tree) if leaf.size}}


def _abstract(like: Any) -> dict[str, Any]:
    return {_MARK: np.zeros((1,), np.int32), **{name: _want(leaf) for name, leaf in _names(like) if leaf.size}}


def _want(leaf: Any) -> Any:
    """What tells Orbax to read a leaf as a NumPy array, if it is one, or else as a JAX array on its place."""
    if not hasattr(leaf, "sharding"):
        return leaf
    place = leaf.sharding if isinstance(leaf.sharding, Sharding) else SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _unflatten(flat: dict[str, Any], like: Any) -> Any:
    leaves = [flat[name] if leaf.size else _empty(leaf) for name, leaf in _names(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _empty(leaf: Any) -> Any:
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _at(leaf: Any, like: Any) -> Any:
    return leaf if leaf.sharding == like.sharding else jax.device_put(leaf, like.sharding)


def _check_fit(folder: Path, stored: Any, like: Any) -> None:
    """Compares names, shapes and dtypes before anything is read: Orbax would cast a dtype silently."""
    if not isinstance(stored, dict):
        raise _damaged(folder, "a part of it is missing")
    fix = "use the settings it was written with, or another folder"
    faults, wanted = Faults(show=5), _abstract(like)
    for name in sorted(stored.keys() | wanted.keys()):
        if name not in stored:
            faults.add(name, "not in the checkpoint", fix)
        elif name not in wanted:
            faults.add(name, "in the checkpoint, but unknown to this model or optimizer", fix)
        else:
            there, here = (f"{x.dtype}{list(x.shape)}" for x in (stored[name], wanted[name]))
            if there != here:
                faults.add(name, f"{there} in the checkpoint, {here} wanted", fix)
    faults.raise_if_any(f"{folder}: this checkpoint does not fit")


def _damaged(folder: Path, why: str) -> UserError:
    return UserError(f"{folder}: damaged checkpoint ({why}); delete this folder, and the run goes on from what is left")


def _context() -> Any:
    context = ocp.Context()
    # Trained floats hardly compress: half the writing time for a few per cent of the size.
    context.array.saving.use_compression = False
    return context


@contextlib.contextmanager
def _orbax(folder: Path, verb: str) -> Iterator[None]:
    """Silences Orbax's chatter for the block and turns its many kinds of exception into one that names the fix."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if verb != "read":
            raise UserError(
                f"{folder}: cannot {verb} checkpoints here ({error}); fix the path or free space"
            ) from error
        raise _damaged(folder, _first_line(error)) from error
    except Exception as error:  # Orbax and TensorStore raise ValueError, KeyError, TypeError, RuntimeError and more
        if verb != "read":
            raise
        raise _damaged(folder, _first_line(error)) from error
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
