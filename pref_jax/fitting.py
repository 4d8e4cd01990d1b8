"""One way to fit every personalised reward that reads texts: votes and base opened, and a workdir that resumes.

A workdir is one process's at a time, and remembers what its work was made from.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from pref_jax import compile_cache, personal
from pref_jax.data.preferences import Preferences
from pref_jax.data.text.token_table import TokenTable
from pref_jax.data.votes import as_preferences
from pref_jax.digests import check_inputs, has_work
from pref_jax.errors import UserError
from pref_jax.files import read_json, write_json
from pref_jax.lm.pair_batches import Texts
from pref_jax.lm.text_model import TextModel, open_text
from pref_jax.lm.vote_texts import open_votes
from pref_jax.locks import hold
from pref_jax.personal import PersonalReward
from pref_jax.progress import log
from pref_jax.train.method import TrainingConfig
from pref_jax.train.state import OptimizerConfig

# Steps that see each vote about so often, between these bounds.
EPOCHS, FEWEST, MOST = 3, 24, 1500
M = TypeVar("M", bound=PersonalReward)


def default_training(num_votes: int) -> TrainingConfig:
    """As many steps of 32 votes as make a few passes over the votes."""
    steps = int(np.clip(EPOCHS * num_votes // 32, FEWEST, MOST))
    recipe = OptimizerConfig(lr=5e-4, num_steps=steps, weight_decay=1e-3, warmup_fraction=0.03, clip=1.0)
    return TrainingConfig(optimizer=recipe)


def fit(
    model: type[M],
    make: Callable[[Preferences, Texts, Path], M],
    votes: Any,
    *,
    config: Any,
    base: str | None,
    text: TextModel | None,
    seed: int,
    workdir: str | Path | None,
    options: dict[str, Any],
) -> M:
    """Fits `model` by `make`, or opens what the same call left in `workdir`.

    Args:
      model: the class.
      make: (votes, their texts, folder for checkpoints) -> a fitted model; killed, it is resumed from the folder.
        Votes on two texts that are the same tokens are left out.
      votes: see `pref_jax.data.votes.as_preferences`.
      config: all that `make` depends on beside votes, base and seed; its `repr` must tell it.
      base: the transformer: a folder, a `package:` path or a hub id.
      text: the same, already opened.
      seed: of all draws.
      workdir: keeps checkpoints and the model; None keeps nothing.
      options: of `pref_jax.lm.text_model.open_text`.

    Raises:
      UserError: for bad votes or options, or a workdir of another fit, of other files, or in use.
    """
    compile_cache.enable()
    if (base is None) == (text is None) or (text is not None and options):
        raise UserError("fit: give base= with text options, or text= alone")
    text = text or open_text(str(base), **options)
    tables = as_preferences(votes, seed=seed)
    with kept(workdir, inputs(votes, tables, text)) as folder:
        mark = _mark(folder, tables, (model.kind, config, seed, sorted(text.about().items())))
        if (folder / "model" / personal.ABOUT).is_file():
            log(f"{folder / 'model'}: fitted before")
            before: Any = model.restore(personal.read(folder / "model", text=text))
            return before
        texts, tables = open_votes(text, tables)
        found = make(tables, texts, folder)
        if workdir is not None:
            found.save(folder / "model")
            log(f"{folder / 'model'}: saved ({mark[:8]})")
    return found


def inputs(votes: Any, tables: Preferences, text: TextModel) -> dict[str, Path]:
    """The files that a fit reads, by what they are."""
    found = {"base": text.folder}
    if text.settings.chat_template:
        found["chat_template"] = Path(text.settings.chat_template)
    path = votes if isinstance(votes, str | Path) else tables.meta.get("path")
    return found if path is None else {**found, "votes": Path(path)}


def features(text: TextModel, tokens: TokenTable, workdir: Path | None) -> Float32[np.ndarray, "N D"]:
    """States of texts, in `workdir` written to a file, from which a killed call resumes."""
    if workdir is None:
        return text.states(tokens)
    (workdir / "features").mkdir(parents=True, exist_ok=True)
    text.write_features(tokens, workdir / "features")
    return np.load(workdir / "features" / "features.npy", mmap_mode="r", allow_pickle=False)


@contextlib.contextmanager
def kept(workdir: str | Path | None, files: Mapping[str, Path]) -> Iterator[Path]:
    """The workdir, for this process alone, or a folder that goes when the fit is done.

    Raises:
      UserError: if another process is in the workdir, or what is there was made from other files.
    """
    if workdir is None:
        with tempfile.TemporaryDirectory(prefix="fit_") as folder:
            yield Path(folder)
        return
    with hold(workdir):
        check_inputs(workdir, files)
        yield Path(workdir)


def _mark(folder: Path, votes: Preferences, made_by: Any) -> str:
    """A digest of all that the fit depends on, kept in the folder.

    Raises:
      UserError: if the folder is another fit's.
    """
    digest = hashlib.sha256(repr(made_by).encode())
    for table in (votes.users, votes.responses, votes.comparisons):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table.combine_chunks())
        digest.update(sink.getvalue())
    path, mark = folder / "fit.json", digest.hexdigest()
    before = read_json(path).get("made_by") if path.exists() else None
    if before not in (None, mark) and has_work(folder):
        raise UserError(f"{folder}: holds a fit of other votes or settings; name another workdir, or delete it")
    if before != mark:
        write_json(path, {"made_by": mark})
    return mark
