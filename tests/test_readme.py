"""Tables of the README and the docs are those of the results that they name, paths exist, and the README is short."""

import json
import re
from pathlib import Path

import pytest

from configs import synthetic
from copl_jax.graph.message_passing import LAYERS
from pref_jax.eval.reporting import report, results

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCS = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
COLUMNS = {
    "quickstart": ["seen/accuracy", "seen/controversial", "unseen/accuracy", "unseen/controversial"],
    "crowdrag": ["seen/accuracy", "unseen/accuracy", "seen/log_loss", "unseen/log_loss"],
}
SETTINGS = [name for name in synthetic.SETTINGS if (ROOT / "results/synthetic" / name).is_dir()]
KNOWN = ["item values", "matrix factorisation", "user-kNN", "gcf", "linear", "LoRe on responses"]
METHODS = ["shared reward", "group oracle", "CoPL"]


@pytest.mark.parametrize("name", COLUMNS)
def test_result_tables_are_those_of_the_results(name):
    rows = results.read_results(ROOT / "results" / name / "results.json")["rows"]
    lines = [line for line in report.table(rows, COLUMNS[name]).splitlines() if line.startswith("|")]
    assert len(lines) >= 5
    assert "\n".join(lines) in DOCS


@pytest.mark.parametrize("metric", ["seen/accuracy", "unseen/accuracy"])
def test_the_tables_of_settings_are_those_of_the_results(metric):
    found = [results.read_results(ROOT / "results/synthetic" / name / "results.json") for name in SETTINGS]
    assert report.across(found, metric, METHODS).split("\n\n")[0] in DOCS


@pytest.mark.parametrize("metric", ["seen/accuracy", "unseen/accuracy"])
def test_the_tables_of_known_jokes_are_those_of_the_study(metric):
    found = [results.read_results(ROOT / f"results/jester_warm/{pairs}_pairs/results.json") for pairs in (4, 8, 16, 40)]
    assert report.across(found, metric, KNOWN).split("\n\n")[0] in DOCS


def test_the_table_of_few_answers_is_that_of_the_study():
    study = (ROOT / "results/lore_personalllm/report.md").read_text().split("## How few answers")[1]
    table = study[study.index("| unseen/accuracy") :].split("\n\n")[0]
    assert table.count("\n") == 6
    assert table in DOCS


def test_the_table_of_layers_is_the_measured_one():
    cells: dict[str, dict[str, str]] = {}
    for row in json.loads((ROOT / "results/bench.json").read_text()):
        if row["name"] == "gcf_layers":
            world, layer = row["size"].split(": ")
            cell = f"{100 * row['extra']['test_accuracy']:.1f} ± {100 * row['extra']['half_interval']:.1f}"
            cells.setdefault(layer, {})[world] = cell
    assert set(cells) == set(LAYERS)
    for layer, own in cells.items():
        assert f"| `{layer}` | {' | '.join(own.values())} |" in DOCS


def test_the_parity_table_is_the_measured_one():
    assert (ROOT / "results" / "parity.md").read_text().strip() in DOCS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_and_pictures_exist(page):
    named = re.findall(r"\]\(((?!http)[^)#]+)[^)]*\)|`((?:results|tests|configs)/[\w./]+)`", page.read_text())
    # Links are from where the page lies, names from the root.
    paths = [page.parent / link if link else ROOT / name for link, name in named]
    assert [str(path) for path in paths if not path.exists()] == []


def test_the_readme_fits_on_a_page():
    assert len((ROOT / "README.md").read_bytes()) <= 8192
