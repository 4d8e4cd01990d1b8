"""Notebooks are saved clean, define nothing of their own, and run to the end on a CPU."""

import ast
import itertools
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))


def _read(path: Path) -> Any:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _definitions(source: str) -> list[str]:
    """What a cell defines: functions, classes, lambdas. Magics become calls first."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    tree = ast.parse(TransformerManager().transform_cell(source))
    return [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, kinds)]


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_saved_without_outputs_for_a_tpu(path):
    notebook = _read(path)
    assert notebook.metadata["accelerator"] == "TPU"
    assert all(cell.outputs == [] and cell.execution_count is None for cell in _code(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_defines_nothing_and_explains_every_cell(path):
    notebook = _read(path)
    assert [found for cell in _code(notebook) for found in _definitions(cell.source)] == []
    kinds = [cell.cell_type for cell in notebook.cells]
    assert all(before == "markdown" for before, kind in itertools.pairwise(kinds) if kind == "code")


def test_definitions_are_found():
    assert len(_definitions("%pip install x\ndef f(): pass\nclass C: pass\ng = lambda: 0")) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# The kernel's own libraries warn of one another.
@pytest.mark.filterwarnings("default")
def test_runs_to_the_end(path, tmp_path, monkeypatch):
    # One device, as on a user's machine.
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("PREF_JAX_VARIANT", "smoke")
    monkeypatch.setenv("PREF_JAX_WORKDIR", str(tmp_path / "run"))
    notebook = _read(path)
    resources = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    cells = _code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = [output.get("data", {}) for cell in cells for output in cell.outputs]
    assert sum("image/png" in data for data in shown) >= 3
    assert any("text/markdown" in data for data in shown)
