"""RewardBench 2: prompts with right and wrong answers, for evaluation only (rules: pref_jax.eval.reward_bench).

Source: allenai/reward-bench-2, `data/test-*.parquet` (arXiv 2506.01937; ODC-BY), columns as on its card:

    id, prompt, chosen: [text], rejected: [text], subset (Factuality, Focus, Math, Precise IF, Safety, Ties)

In Ties the id is `ref:N` for the prompt of question N with one right answer and `tied:N` for the one with several.

Axis letters: N responses.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from pref_jax.data.schema import RESPONSES
from pref_jax.data.sources.common import hub
from pref_jax.data.sources.common.dialogues import need_values, rows
from pref_jax.errors import Faults

ID = "allenai/reward-bench-2"
COLUMNS = {
    "id": pa.string(),
    "prompt": pa.string(),
    "chosen": pa.list_(pa.string()),
    "rejected": pa.list_(pa.string()),
    "subset": pa.string(),
}
TIES = "Ties"
_QUESTION = re.compile(r"(ref|tied):(\d+)")


class Bench(NamedTuple):
    """The set, one row per response, right ones before wrong ones of each prompt.

    Attributes:
      responses: columns of `RESPONSES`, texts unchanged; the id is `SUBSET/ID/NUMBER`.
      subset: N names.
      prompt: int64 [N], the prompt's row in the source; in Ties the number of its question.
      correct: bool [N].
      reference: bool [N], whether the prompt is a reference prompt of Ties.
      source: where it was read.
    """

    responses: pa.Table
    subset: list[str]
    prompt: Int[np.ndarray, "N"]
    correct: Bool[np.ndarray, "N"]
    reference: Bool[np.ndarray, "N"]
    source: str


def read(path: str | Path = ID, *, revision: str | None = None) -> Bench:
    """Reads all prompts; nothing is left out or changed, empty and equal answers are answers too.

    Args:
      path: hub id, or a folder with `data/test-*.parquet`.
      revision: on the hub.

    Raises:
      UserError: if the data cannot be read, is not of the schema above, or holds nulls.
    """
    table = hub.read_columns(path, files=("data/test*",), columns=COLUMNS, revision=revision, flag="--path")
    need_values(table, tuple(COLUMNS), f"{path}: test")
    faults = Faults()
    responses, subset, prompt, correct, reference = [], [], [], [], []
    for line, row in enumerate(rows(table)):
        question = _QUESTION.fullmatch(row["id"]) if row["subset"] == TIES else None
        if row["subset"] == TIES and question is None:
            faults.add(f"row {line}, column 'id'", f"is {row['id']!r}, not ref:N or tied:N", "fetch the data again")
        for name in ("chosen", "rejected"):
            if not row[name] or None in row[name]:
                faults.add(f"row {line}, column {name!r}", "is empty or holds a null", "fetch the data again")
        messages = [{"role": "user", "content": row["prompt"]}]
        answers = [(text, True) for text in row["chosen"]] + [(text, False) for text in row["rejected"]]
        for place, (text, right) in enumerate(answers):
            response = f"{row['subset']}/{row['id']}/{place}"
            responses.append({"response_id": response, "prompt": messages, "text": text})
            subset.append(row["subset"])
            prompt.append(line if question is None else int(question[2]))
            correct.append(right)
            reference.append(question is not None and question[1] == "ref")
    faults.raise_if_any(f"{path}: not as RewardBench 2 is known")
    return Bench(
        pa.Table.from_pylist(responses, schema=RESPONSES),
        subset,
        np.array(prompt, np.int64),
        np.array(correct, bool),
        np.array(reference, bool),
        hub.describe(path, revision),
    )
