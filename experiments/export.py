"""A trained reward model for use elsewhere: one user's as a LoRA for PEFT, or everyone's adapters without transformer.

    python -m experiments.export --config=configs/quickstart.py --workdir=runs/quickstart --user=ID --out=FOLDER

Without --user FOLDER gets all experts, gates, head and users' embeddings, as `copl_jax.io.checkpoint` reads them.
"""

from pathlib import Path

from absl import flags

from copl_jax.io import checkpoint, peft
from experiments.baselines import load_shared
from experiments.copl import METHOD
from experiments.methods import SHARED
from experiments.runner.cli import Config, launch
from experiments.runner.workspace import Workspace, log, require, workspaces
from pref_jax.errors import UserError
from pref_jax.lm import parameter_files
from pref_jax.lm.classifier import check_padding

# The files of an export of either kind.
EXPORTED = {parameter_files.TENSORS, parameter_files.CONFIG, *peft.FILES, peft.HEAD}


def run(config: Config, workdir: Path, *, user: str, out: str, seed: str, method: str) -> None:
    """Writes the folder `out` from the adapters that a finished training left in the workdir."""
    if not out:
        raise UserError("no --out given; name a folder for the exported model, such as --out=exported")
    target = _replaceable(Path(out).resolve())
    one = _chosen(config, workdir, seed)
    folder = require(one.method_folder(method or METHOD) / "model", "compare")
    if method == SHARED:
        _shared(one, target, user)
        log(f"{SHARED}, seed {one.seed}: {out}")
        return
    found = checkpoint.load(folder / "adapters", one.text.config)
    if found.config.routing == "users":
        # Training knew seen users alone.
        found = found._replace(user_embeddings=one.users())
    if not user:
        checkpoint.save(target, found.config, found.params, found.user_embeddings)
        log(f"adapters of {method or METHOD}, seed {one.seed}: {out}")
        return
    row = None if found.user_embeddings is None else found.user_embeddings[_row(one, user)]
    _check_padding(one)
    peft.save_peft(target, found.config, found.params, row, base_name=one.text.name)
    log(f"LoRA of user {user}, seed {one.seed}, for PEFT: {out}")


def _shared(work: Workspace, target: Path, user: str) -> None:
    """The reward that all users share: as a LoRA for PEFT if a user is named, else its adapters and head."""
    params, _ = load_shared(work)
    if not user:
        parameter_files.write(target, {"model": {"method": SHARED}}, parameter_files.as_tensors(params))
        return
    _row(work, user)
    _check_padding(work)
    own = {"scale": work.shared.lora.scale, "base_name": work.text.name}
    peft.save_adapters(target, work.shared.lm, params["adapters"], params["head"], **own)


def _check_padding(work: Workspace) -> None:
    """Refuses a LoRA whose rewards transformers would read at another token than we do."""
    if work.text.config.pooling == "last":
        check_padding(work.text.config, work.text.tokenizer, work.text.name)


def define(values: flags.FlagValues) -> None:
    """The flags of this experiment."""
    for name, text in {
        "user": "user_id of the tables; without it all users' adapters are written",
        "out": "folder to write; an earlier export there is replaced",
        "seed": "which of config.seeds; the first one by default",
        "method": f"whose model, such as 'shared reward'; {METHOD} by default",
    }.items():
        flags.DEFINE_string(name, "", text, flag_values=values)


def _hidden_last(name: str) -> tuple[bool, str]:
    return name.startswith("."), name


def _replaceable(out: Path) -> Path:
    """The folder, unless it holds anything but an export, all of which would go with it."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out}: is a file; name a folder")
    others = sorted({file.name for file in out.iterdir()} - EXPORTED, key=_hidden_last) if out.exists() else []
    if others:
        raise UserError(f"--out={out}: holds other things than an export, such as {others[0]}; name another folder")
    return out


def _chosen(config: Config, workdir: Path, seed: str) -> Workspace:
    every = {str(one.seed): one for one in workspaces(config, workdir)}
    if seed and seed not in every:
        raise UserError(f"--seed={seed}: config.seeds has {', '.join(every)}")
    return every[seed or next(iter(every))]


def _row(work: Workspace, user: str) -> int:
    """The user's row in the tables."""
    ids = work.data.users["user_id"].to_pylist()
    if user not in ids:
        raise UserError(f"--user={user}: not in {work.folder / 'data'}; it has {len(ids)} users, such as {ids[:3]}")
    return ids.index(user)


if __name__ == "__main__":
    launch(run, __doc__ or "", define=define)
