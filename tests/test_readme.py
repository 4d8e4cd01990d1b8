"""The README's tables are those of the results that it names, and its paths exist."""

import re
from pathlib import Path

import pytest

from pref_jax.eval import report, results

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COLUMNS = {
    "quickstart": ["seen/accuracy", "seen/controversial", "unseen/accuracy", "unseen/controversial"],
    "crowdrag": ["seen/accuracy", "unseen/accuracy", "seen/log_loss", "unseen/log_loss"],
}


@pytest.mark.parametrize("name", COLUMNS)
def test_result_tables_are_those_of_the_results(name):
    rows = results.read_results(ROOT / "results" / name / "results.json")["rows"]
    lines = [line for line in report.table(rows, COLUMNS[name]).splitlines() if line.startswith("|")]
    assert len(lines) >= 5
    assert "\n".join(lines) in README


def test_the_parity_table_is_the_measured_one():
    assert (ROOT / "results" / "parity.md").read_text().strip() in README


def test_named_files_and_pictures_exist():
    named = re.findall(r"\]\(((?!http)[^)]+)\)|`((?:results|tests|configs)/[\w./]+)`", README)
    paths = [ROOT / (a or b) for a, b in named]
    assert len(paths) > 3
    assert [str(path) for path in paths if not path.exists()] == []
