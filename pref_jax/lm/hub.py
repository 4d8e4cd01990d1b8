"""Where a checkpoint's files are: a folder, an installed package, or the Hugging Face hub."""

import importlib.util
import re
from pathlib import Path

from pref_jax.errors import UserError


def locate(name: str | Path, revision: str | None = None) -> Path:
    """The folder behind a name, which is one of

    - a folder,
    - `package:some_package/folder`: files inside an installed package, found without importing it,
    - a Hugging Face hub id such as `org/model`: fetched into the hub's cache (weights, configs, tokenizer files only),
      at a `revision` (branch, tag or commit) if one is given.

    Raises:
      UserError: if there is no such folder or package, or the hub cannot be reached.
    """
    text = str(name)
    if text.startswith("package:"):
        return _in_package(text)
    if Path(text).is_dir():
        return Path(text)
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text) is None:
        raise UserError(f"{text}: no such folder, and no hub id (org/model) either; check the path")
    import huggingface_hub

    try:
        patterns = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
        return Path(huggingface_hub.snapshot_download(text, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises errors of many libraries: all mean "not fetched" to the user
        raise UserError(
            f"{text}: no such folder here, and the hub did not give it ({type(error).__name__}: {error}); "
            "give a local folder with config.json and model.safetensors, or check the name and the connection"
        ) from error


def _in_package(name: str) -> Path:
    package, _, inside = name.removeprefix("package:").partition("/")
    # Asking for the top package's spec runs none of its code, which may need libraries that are not installed.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        dashed = package.replace("_", "-")
        raise UserError(f"{name}: package {package!r} is not installed; try: pip install --no-deps {dashed}")
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    folder = (root / inside).resolve()
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise UserError(f"{name}: the installed package has no folder {inside!r}; look into {root}")
    return folder
