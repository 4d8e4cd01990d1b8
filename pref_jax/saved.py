"""What a saved folder says of itself, read without JAX and without opening the base; see `pref_jax.personal`."""

from pathlib import Path
from typing import Any

from pref_jax.errors import UserError
from pref_jax.files import digest, read_json
from pref_jax.version import __version__

FORMAT = 1
ABOUT, TENSORS, USERS, TEMPLATE = "reward.json", "parameters.safetensors", "users.parquet", "chat_template.jinja"


def about(folder: str | Path) -> dict[str, Any]:
    """`reward.json` of a saved folder.

    Raises:
      UserError: if there is none, or it is of a format that this version does not read.
    """
    path = Path(folder) / ABOUT
    if not path.is_file():
        raise UserError(f"{folder}: no saved model there (no {ABOUT}); check the path, or save one with model.save")
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        number = found.get("format") if isinstance(found, dict) else None
        raise UserError(
            f"{path}: format {number!r}, and this version ({__version__}) reads {FORMAT}; "
            "install the version that saved it, or train and save the model again"
        )
    return found


def users(folder: str | Path) -> dict[str, int]:
    """Number of votes of every user that a saved model knows, by id, in the order of the model's rows.

    Raises:
      UserError: if there is no saved model, or its list of users is not the one that was saved.
    """
    import pyarrow.parquet as pq

    check_file(folder, USERS, about(folder)["sha256"][USERS])
    # Not by `read_table`, which loads pandas: a second more.
    with pq.ParquetFile(Path(folder) / USERS) as file:
        table = file.read()
    return dict(zip(table["user_id"].to_pylist(), table["votes"].to_pylist(), strict=True))


def check_file(folder: str | Path, name: str, saved: str) -> None:
    """Compares a file with the digest that was saved of it.

    Raises:
      UserError: if the file is missing or another one.
    """
    path = Path(folder) / name
    if not path.is_file() or digest(path) != saved:
        state = "truncated or changed" if path.exists() else "missing"
        raise UserError(f"{path}: {state} since the model was saved; save the model again, or restore the file")


def check_target(folder: str | Path) -> None:
    """Lets a model be saved only where nothing, or an earlier model, would be replaced.

    Raises:
      UserError: if `folder` holds something else.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / ABOUT).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: holds something other than a saved model; name another folder")
