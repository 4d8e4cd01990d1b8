"""The arrows between packages and folders, read from the imports: who may know whom, and in which order one reads."""

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each package and those of ours that it may import.
ARROWS = {
    "pref_jax": (),
    "copl_jax": ("pref_jax",),
    "lore_jax": ("pref_jax",),
    "experiments": ("pref_jax", "copl_jax", "lore_jax"),
    "configs": ("pref_jax", "copl_jax", "lore_jax", "experiments"),
}
# Reading order of each package: its folders, and the files that build on them. Each imports only what stands before it.
# Every other file beside the folders is common ground, which imports nothing but common ground.
ORDER = {
    "pref_jax": (
        "data", "lm", "train", "eval", "best_of", "personal", "fitting", "baselines", "auto", "integrations", "serve",
        "cli_options", "cli_lines", "cli_data", "cli_sample", "cli_store", "cli_serve", "cli",
    ),
    "copl_jax": ("graph", "reward", "io", "fitted", "model"),
    "lore_jax": ("weights", "deep", "fitting", "online", "fitted", "model"),
}  # fmt: skip
# These need an array of features and no transformer; only deep LoRe and the front door, which reads texts, do.
DEEP = ("lore_jax.deep", "lore_jax.fitted", "lore_jax.model")
TRANSFORMERS = ("pref_jax.lm", "transformers", "flax")
PICKLES = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
# Calls that read or write pickles behind another name.
PICKLING = ("read_pickle", "to_pickle", "torch.load", "torch.save")


class Import(NamedTuple):
    """One import: the dotted name, the line, and whether importing the file runs it (not inside a function)."""

    name: str
    line: int
    at_import: bool


class Source(NamedTuple):
    """One file: dotted module name, path relative to the root, syntax tree."""

    module: str
    path: Path
    tree: ast.Module


def read(root: Path) -> dict[str, Source]:
    """All files of the packages by module name; a package's `__init__` has the package's name."""
    sources = {}
    for path in sorted(p for package in ARROWS for p in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[module] = Source(module, path.relative_to(root), ast.parse(path.read_text(encoding="utf-8")))
    return sources


def imports(source: Source) -> Iterator[Import]:
    """Every import of a file; `from a import b` gives both a and a.b, relative ones are made absolute.

    Those in functions and those for type checkers alone do not run when the file is imported.
    """
    inside = {
        id(node)
        for block in ast.walk(source.tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
        for node in ast.walk(block)
    }
    package = source.module.split(".") if source.path.name == "__init__.py" else source.module.split(".")[:-1]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            names = [start, *(f"{start}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (Import(name, node.lineno, id(node) not in inside) for name in names)


def within(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def package_faults(sources: dict[str, Source]) -> list[str]:
    """Imports of one package of ours by another that must not know it."""
    ours = (*ARROWS, "tests")
    return [
        f"{source.path}:{line}: {source.module.split('.')[0]} must not import {name}"
        for source in sources.values()
        for name, line, _ in imports(source)
        if (top := name.split(".")[0]) in ours
        and top != source.module.split(".")[0]
        and top not in ARROWS[source.module.split(".")[0]]
    ]


def order_faults(sources: dict[str, Source]) -> list[str]:
    """Folders that are in no order, and imports of something that a reader has not yet read."""
    faults = []
    for source in sources.values():
        package, *rest = source.module.split(".")
        if package not in ORDER or not rest:
            continue
        order = ORDER[package]
        if len(rest) > 1 and rest[0] not in order:
            fix = f"add {rest[0]!r} to ORDER[{package!r}] in tests/test_arrows.py, after all that it imports"
            faults.append(f"{source.path}: not in the reading order; {fix}")
            continue
        place = order.index(rest[0]) if rest[0] in order else -1
        for name, line, _ in imports(source):
            top, *below = name.split(".")
            if top == package and below and below[0] in order and order.index(below[0]) > place:
                faults.append(f"{source.path}:{line}: {name} comes later in the reading order than {source.module}")
    return faults


def cycle_faults(sources: dict[str, Source]) -> list[str]:
    """A ring of files that import each other: then there is no order to read them in."""
    graph = {
        source.module: {
            name for name, _, _ in imports(source) if name in sources and not within(source.module, (name,))
        }
        for source in sources.values()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [f"files import each other in a ring: {' <- '.join(error.args[1])}"]
    return []


def transformer_faults(sources: dict[str, Source]) -> list[str]:
    """Transformers reached by a file of lore_jax other than `DEEP`: by any import of its own, or on being imported."""
    faults = []
    for source in sources.values():
        if not within(source.module, ("lore_jax",)) or within(source.module, DEEP):
            continue
        for name, line, _ in imports(source):
            if within(name, TRANSFORMERS):
                faults.append(f"{source.path}:{line}: {name}; only {', '.join(DEEP)} may need a transformer")
        for module in sorted(reached(sources, source.module) - {source.module}):
            for name, line, at_import in imports(sources[module]):
                if at_import and within(name, TRANSFORMERS):
                    faults.append(f"{source.path}: imports {module}, which imports {name} (line {line})")
    return faults


def reached(sources: dict[str, Source], module: str) -> set[str]:
    """The module and all of ours that importing it imports, parents' `__init__` included."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name not in sources:
            continue
        found.add(name)
        waiting += [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)]
        waiting += [item.name for item in imports(sources[name]) if item.at_import]
    return found


def forbidden_faults(sources: dict[str, Source]) -> list[str]:
    """Pickles by any name, remote code, and pyplot's global state."""
    faults = []
    for source in sources.values():
        for name, line, _ in imports(source):
            if within(name, PICKLES):
                faults.append(f"{source.path}:{line}: {name}: no pickles; use safetensors, Arrow, Parquet or JSON")
            if within(name, ("matplotlib.pyplot", "pylab")):
                faults.append(f"{source.path}:{line}: {name}: no global state; use matplotlib.figure.Figure")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
                if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                    faults.append(f"{source.path}:{node.value.lineno}: {node.arg} may only be False")
            elif isinstance(node, ast.Constant) and node.value == "trust_remote_code":
                faults.append(f"{source.path}:{node.lineno}: trust_remote_code")
            elif isinstance(node, ast.Attribute) and ast.unparse(node).endswith(PICKLING):
                faults.append(f"{source.path}:{node.lineno}: {ast.unparse(node)} pickles")
    return faults


CHECKS = (package_faults, order_faults, cycle_faults, transformer_faults, forbidden_faults)


@pytest.mark.parametrize("check", CHECKS)
def test_arrows(check):
    faults = check(read(ROOT))
    assert not faults, "\n" + "\n".join(faults)


# Imports all modules named on the command line; tells what happened that should not.
_PROBE = """
import importlib, os, sys
from jax._src import xla_bridge
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        # torch is there for baselines and parity only (extra "parity").
        if (error.name or "").split(".")[0] != "torch":
            raise
    if xla_bridge._backends:
        sys.exit(f"importing {name} started the devices {sorted(xla_bridge._backends)}")
    if os.listdir():
        sys.exit(f"importing {name} wrote {os.listdir()}")
"""


def test_importing_does_no_work(tmp_path):
    modules = sorted(read(ROOT))
    command = [sys.executable, "-c", _PROBE, *modules]
    done = subprocess.run(command, cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "", f"importing prints: {done.stdout[:500]}"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.parametrize(
    ("check", "files", "message"),
    [
        (package_faults, {"pref_jax/files.py": "import copl_jax"}, "pref_jax must not import copl_jax"),
        (package_faults, {"pref_jax/lm/a.py": "def f():\n  from experiments import x"}, r"a.py:2: pref_jax must not"),
        (
            package_faults,
            {"copl_jax/graph/gcf.py": "from lore_jax.fitting.model_selection import fit"},
            "copl_jax must not import lore_jax.fitting.model_selection",
        ),
        (package_faults, {"experiments/copl.py": "import configs.copl"}, "experiments must not import configs"),
        (
            package_faults,
            {"lore_jax/fitting/model_selection.py": "from tests import conftest"},
            "lore_jax must not import tests",
        ),
        (order_faults, {"pref_jax/new.py": "from pref_jax.data import a"}, "pref_jax.data comes later"),
        (order_faults, {"lore_jax/extra/deep.py": ""}, r"add 'extra' to ORDER\['lore_jax'\]"),
        (order_faults, {"pref_jax/data/a.py": "from pref_jax.lm import b"}, "pref_jax.lm comes later"),
        (
            order_faults,
            {"copl_jax/graph/signed_graph.py": "from copl_jax.io import peft"},
            "copl_jax.io.peft comes later",
        ),
        (
            order_faults,
            {"lore_jax/weights/solve.py": "from ..fitting import lbfgs"},
            "lore_jax.fitting.lbfgs comes later",
        ),
        (
            cycle_faults,
            {"pref_jax/lm/a.py": "from pref_jax.lm import b", "pref_jax/lm/b.py": "from .a import x"},
            "pref_jax.lm.[ab] <- pref_jax.lm.[ab] <- pref_jax.lm.[ab]",
        ),
        (
            transformer_faults,
            {"lore_jax/fitting/model_selection.py": "def f():\n  import transformers.models"},
            "only lore_jax.deep",
        ),
        (transformer_faults, {"lore_jax/weights/solve.py": "from flax import nnx"}, r"solve.py:1: flax"),
        (
            transformer_faults,
            {
                "lore_jax/fitting/model_selection.py": "from pref_jax.train import loop",
                "pref_jax/train/loop.py": "import pref_jax.lm.lora",
            },
            r"model_selection.py: imports pref_jax.train.loop, which imports pref_jax.lm.lora",
        ),
        (forbidden_faults, {"configs/a.py": "import cloudpickle"}, "no pickles"),
        (forbidden_faults, {"pref_jax/a.py": "np.load(f, allow_pickle=yes)"}, "allow_pickle may only be False"),
        (forbidden_faults, {"pref_jax/a.py": "load(x, trust_remote_code=True)"}, "trust_remote_code may only be False"),
        (forbidden_faults, {"pref_jax/a.py": "load(**{'trust_remote_code': 1})"}, ":1: trust_remote_code"),
        (forbidden_faults, {"experiments/a.py": "w = torch.load(f)"}, "torch.load pickles"),
        (forbidden_faults, {"pref_jax/eval/a.py": "from matplotlib import pyplot as plt"}, "no global state"),
    ],
)
def test_checks_find_what_they_should(tmp_path, check, files, message):
    _write(tmp_path, files)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(check(read(tmp_path))))


def test_checks_pass_what_is_fine(tmp_path):
    files = {
        "pref_jax/__init__.py": "",
        "pref_jax/errors.py": '"""Never pickle, never trust_remote_code."""',
        "pref_jax/lm/__init__.py": "",
        "pref_jax/lm/a.py": "from pref_jax import errors\nimport transformers, flax\nload(x, trust_remote_code=False)",
        "pref_jax/lm/b.py": "from pref_jax.lm import a",
        "pref_jax/train/loop.py": "from pref_jax.errors import UserError\ndef f():\n  import pref_jax.lm.a",
        "lore_jax/fitting/model_selection.py": "from lore_jax import solve\nfrom pref_jax.train import loop",
        "lore_jax/weights/solve.py": "",
        "lore_jax/deep.py": "from pref_jax.lm import a\nimport flax",
        "lore_jax/__init__.py": "if TYPE_CHECKING:\n  from lore_jax.model import LoRe",
        "lore_jax/model.py": "import pref_jax.lm.a\nfrom lore_jax.fitting import model_selection",
        "experiments/lore.py": "from copl_jax import gcf\nimport lore_jax.fitting.model_selection",
        "configs/lore.py": "from experiments import lore",
    }
    _write(tmp_path, files)
    assert [fault for check in CHECKS for fault in check(read(tmp_path))] == []


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
