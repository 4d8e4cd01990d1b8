"""Tokens: rendering, truncation, ragged tables."""

import numpy as np
import pyarrow as pa
import pytest

from pref_jax.data import tokens
from pref_jax.data.tokens import TokenTable
from pref_jax.data.validate import RESPONSES
from pref_jax.errors import UserError

DIALOGUES = [("how are you ?", "very well , thank you .", "good"), ("what is this ?", "a test .")]


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.train_tokenizer([" ".join(turns) for turns in DIALOGUES], vocab_size=320)


def _responses(*rows: tuple[str, str]) -> pa.Table:
    columns = {
        "response_id": [str(i) for i in range(len(rows))],
        "prompt": [[{"role": "user", "content": prompt}] for prompt, _ in rows],
        "text": [text for _, text in rows],
    }
    return pa.table(columns, schema=RESPONSES)


def test_a_dialogue_ends_with_the_answers_token(tokenizer):
    table = tokens.tokenize_responses(tokenizer, _responses(("what is this ?", "a test .")), max_length=50)
    assert table.flat[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(table.flat)
    assert text == " what is this ?<|end_of_user|> a test .<|end_of_assistant|>"


def test_rendering_does_not_depend_on_the_neighbours(tokenizer):
    rows = [("how are you ?", "well ."), ("what is this ?", "a test , very well .")]
    together = tokens.tokenize_responses(tokenizer, _responses(*rows), max_length=60)
    for i, row in enumerate(rows):
        alone = tokens.tokenize_responses(tokenizer, _responses(row), max_length=60, chunk=1)
        np.testing.assert_array_equal(together.flat[together.offsets[i] : together.offsets[i + 1]], alone.flat)


def test_long_dialogues_lose_their_beginning_and_are_counted(tokenizer):
    whole = tokens.tokenize_dialogues(tokenizer, DIALOGUES, max_length=100)
    cut = tokens.tokenize_dialogues(tokenizer, DIALOGUES, max_length=5)
    assert cut.truncated == 2
    assert whole.truncated == 0
    for i in range(2):
        np.testing.assert_array_equal(
            cut.flat[cut.offsets[i] : cut.offsets[i + 1]], whole.flat[whole.offsets[i] : whole.offsets[i + 1]][-5:]
        )


def test_a_saved_tokenizer_opens_again_with_its_template(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = tokens.load_tokenizer(tmp_path)
    first, second = (tokens.tokenize_dialogues(t, DIALOGUES, max_length=50) for t in (tokenizer, again))
    np.testing.assert_array_equal(first.flat, second.flat)
    assert again.pad_token_id == 0


def test_missing_and_broken_tokenizers_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        tokens.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="does not open"):
        tokens.load_tokenizer(tmp_path)


def test_take_pads_on_the_right():
    table = TokenTable(np.arange(1, 7, dtype=np.int32), np.array([0, 2, 2, 6]), 0)
    ids, mask = table.take(np.array([2, 0, 1]), 4)
    np.testing.assert_array_equal(ids, [[3, 4, 5, 6], [1, 2, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(mask.sum(1), [4, 2, 0])
    assert ids.dtype == np.int32


def test_an_empty_table_gives_no_rows():
    table = TokenTable(np.zeros(0, np.int32), np.zeros(1, np.int64), 0)
    ids, mask = table.take(np.zeros(0, np.int64))
    assert ids.shape == mask.shape == (0, 1)
