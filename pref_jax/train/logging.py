"""Scores of a run, written line by line where people and programs find them.

`metrics.jsonl` holds one JSON object a line: {"name", "step", scores...}. It holds no times, so two runs of the same
computation write the same bytes, killed and resumed or not. TensorBoard's event files stand in `tensorboard/`.
"""

import importlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat, cast

from pref_jax.errors import UserError
from pref_jax.files import write_text


class MetricsLog:
    """Writes scores to `metrics.jsonl`, TensorBoard and, if asked, Weights & Biases.

    Opening it drops the lines of `name` beyond `step`, and a line cut short: a resumed run computes them again, so no
    step stands there twice. Lines of other names in the same file stay. On several hosts, process 0 alone opens one.

    Args:
      folder: the run's folder; made if missing.
      name: the fit's name, on each line and before each TensorBoard tag.
      step: the step the run resumes from; 0 for a new one.
      tensorboard: whether to write event files.
      wandb: project name in Weights & Biases; None leaves it alone.

    Raises:
      UserError: if wandb is asked for and not installed.
    """

    def __init__(
        self, folder: str | Path, *, name: str, step: int = 0, tensorboard: bool = True, wandb: str | None = None
    ):
        self._name = name
        self._file: int | None = None
        self._tensorboard = self._wandb = None
        path = Path(folder) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        _truncate(path, name, step)
        if wandb is not None:
            self._wandb = _open_wandb(wandb, name, folder)
        if tensorboard:
            self._tensorboard = _open_tensorboard(Path(folder) / "tensorboard" / name, step)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def write(
        self,
        step: int,
        scores: Mapping[str, SupportsFloat | None],
        *,
        only_shown: Mapping[str, SupportsFloat] | None = None,
    ) -> None:
        """Writes one line: `scores` after `step` steps. A score that is not finite becomes null.

        `only_shown` goes to TensorBoard and Weights & Biases but not into the file: times, which no run repeats.
        """
        clean = {key: _finite(value) for key, value in scores.items()}
        line = json.dumps({"name": self._name, "step": step, **clean}, allow_nan=False) + "\n"
        if self._file is None:
            raise ValueError("the log is closed")
        os.write(self._file, line.encode())  # one call appends the whole line
        shown = {f"{self._name}/{key}": v for key, v in {**(only_shown or {}), **clean}.items() if v is not None}
        if self._tensorboard is not None:
            for tag, value in shown.items():
                self._tensorboard.add_scalar(tag, value, step)
        if self._wandb is not None:
            self._wandb.log(shown, step=step)

    def close(self) -> None:
        """Flushes and closes all files; a second call does nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None


def read_metrics(folder: str | Path, name: str | None = None) -> list[dict[str, Any]]:
    """The lines of `folder/metrics.jsonl`, of one fit or of all; a line cut short by a kill is left out."""
    path = Path(folder) / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [record for record in map(_parse, lines) if record is not None]
    return [record for record in records if name is None or record["name"] == name]


def _truncate(path: Path, name: str, step: int) -> None:
    if not path.exists():
        return
    old = path.read_text(encoding="utf-8", errors="replace")
    kept = ""
    for line in old.splitlines(keepends=True):
        record = _parse(line)
        if record is not None and line.endswith("\n") and not (record["name"] == name and record["step"] > step):
            kept += line
    if kept != old:
        write_text(path, kept)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and {"name", "step"} <= record.keys() else None


def _finite(value: SupportsFloat | None) -> float | None:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _open_tensorboard(folder: Path, step: int) -> Any:
    # tensorboardX imports torch wherever it is installed, for functions not used here: three seconds on Colab before
    # a first step. While None stands in its place, torch counts as not installed.
    hide = "torch" not in sys.modules and "tensorboardX" not in sys.modules
    if hide:
        sys.modules["torch"] = cast(Any, None)
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hide:
            del sys.modules["torch"]
    return SummaryWriter(str(folder), purge_step=step + 1)


def _open_wandb(project: str, name: str, folder: str | Path) -> Any:
    if importlib.util.find_spec("wandb") is None:
        raise UserError("wandb is asked for but not installed; pip install wandb, or leave the option out")
    return importlib.import_module("wandb").init(project=project, name=name, dir=str(folder), resume="allow")
