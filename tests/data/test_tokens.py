"""Tokens: rendering, text pairs, truncation."""

import copy
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pref_jax.data.schema import RESPONSES
from pref_jax.data.text import chat_templates, tokenization
from pref_jax.errors import UserError

DIALOGUES = [("how are you ?", "very well , thank you .", "good"), ("what is this ?", "a test .")]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenization.train_tokenizer([" ".join(turns) for turns in DIALOGUES], vocab_size=320)


CLS, SEP = 1, 2


def _encoder() -> PreTrainedTokenizerFast:
    """Words w0 .. w99 are the ids 10 .. 109; a pair is [CLS] prompt [SEP] response [SEP], as with BERT."""
    vocabulary = {"[UNK]": 0, "[CLS]": CLS, "[SEP]": SEP, **{f"w{i}": 10 + i for i in range(100)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    # As shipped with sentence encoders: a file's own idea of truncation must not be followed.
    tokenizer.enable_truncation(4)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


ENCODER = _encoder()


def _words(start: int, count: int) -> str:
    return " ".join(f"w{i}" for i in range(start, start + count))


def _responses(*rows: tuple[str, str]) -> pa.Table:
    columns = {
        "response_id": [str(i) for i in range(len(rows))],
        "prompt": [[{"role": "user", "content": prompt}] for prompt, _ in rows],
        "text": [text for _, text in rows],
        "extra": pa.nulls(len(rows)),
    }
    return pa.table(columns, schema=RESPONSES)


def test_a_dialogue_ends_with_the_answers_token(tokenizer):
    table = tokenization.tokenize_responses(tokenizer, _responses(("what is this ?", "a test .")), max_length=50)
    assert table.flat[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(table.flat)
    assert text == " what is this ?<|end_of_user|> a test .<|end_of_assistant|>"


def test_rendering_does_not_depend_on_the_neighbours(tokenizer):
    rows = [("how are you ?", "well ."), ("what is this ?", "a test , very well .")]
    together = tokenization.tokenize_responses(tokenizer, _responses(*rows), max_length=60)
    for i, row in enumerate(rows):
        alone = tokenization.tokenize_responses(tokenizer, _responses(row), max_length=60, chunk=1)
        np.testing.assert_array_equal(together.flat[together.offsets[i] : together.offsets[i + 1]], alone.flat)


def test_long_dialogues_lose_their_beginning_and_are_counted(tokenizer):
    whole = tokenization.tokenize_dialogues(tokenizer, DIALOGUES, max_length=100)
    cut = tokenization.tokenize_dialogues(tokenizer, DIALOGUES, max_length=5)
    for none in (0, -5):
        with pytest.raises(UserError, match=f"max_length is {none}; a text keeps one token at least"):
            tokenization.tokenize_dialogues(tokenizer, DIALOGUES, max_length=none)
    assert cut.truncated == 2
    assert whole.truncated == 0
    for i in range(2):
        np.testing.assert_array_equal(
            cut.flat[cut.offsets[i] : cut.offsets[i + 1]], whole.flat[whole.offsets[i] : whole.offsets[i + 1]][-5:]
        )


def test_a_saved_tokenizer_opens_again_with_its_template(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = tokenization.load_tokenizer(tmp_path)
    first, second = (tokenization.tokenize_dialogues(t, DIALOGUES, max_length=50) for t in (tokenizer, again))
    np.testing.assert_array_equal(first.flat, second.flat)
    assert again.pad_token_id == 0


def test_missing_and_broken_tokenizers_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        tokenization.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="does not open"):
        tokenization.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("prompt", "answer", "want"),
    [
        (3, 4, [CLS, 10, 11, 12, SEP, 60, 61, 62, 63, SEP]),
        (5, 4, [CLS, 12, 13, 14, SEP, 60, 61, 62, 63, SEP]),  # the prompt loses its beginning
        (2, 7, [CLS, SEP, 60, 61, 62, 63, 64, 65, 66, SEP]),  # to the last word of it
        (2, 9, [CLS, SEP, 62, 63, 64, 65, 66, 67, 68, SEP]),  # and then the response loses its own
        (0, 0, [CLS, SEP, SEP]),
        (9, 0, [CLS, *range(12, 19), SEP, SEP]),
    ],
)
def test_long_text_pairs_keep_the_responses_end_and_their_special_tokens(prompt, answer, want):
    rows = _responses((_words(0, prompt), _words(50, answer)), ("w1", "w2"))
    table = tokenization.tokenize_responses(ENCODER, rows, max_length=10, pairs=True)
    assert table.flat[: table.offsets[1]].tolist() == want
    assert table.flat[table.offsets[1] :].tolist() == [CLS, 11, SEP, 12, SEP]
    assert table.truncated == (prompt + answer > 7)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12), st.integers(4, 20), st.integers(1, 5))
def test_text_pairs_are_cut_and_counted_exactly(sizes, max_length, chunk):
    rows = _responses(*((_words(0, prompt), _words(50, answer)) for prompt, answer in sizes))
    table = tokenization.tokenize_responses(ENCODER, rows, max_length=max_length, pairs=True, chunk=chunk)
    room = max_length - 3
    want = [(max(0, min(p, room - a)), min(a, room)) for p, a in sizes]
    np.testing.assert_array_equal(table.lengths, [3 + p + a for p, a in want])
    assert table.truncated == sum(p + a > room for p, a in sizes)
    for i, ((prompt, answer), (kept_prompt, kept_answer)) in enumerate(zip(sizes, want, strict=True)):
        first = range(10 + prompt - kept_prompt, 10 + prompt)
        second = range(60 + answer - kept_answer, 60 + answer)
        assert table.flat[table.offsets[i] : table.offsets[i + 1]].tolist() == [CLS, *first, SEP, *second, SEP]


def test_a_literal_special_token_in_a_text_is_text():
    row = _responses(("w1 [SEP] w2", "w3 w4"))
    table = tokenization.tokenize_responses(ENCODER, row, max_length=6, pairs=True)
    assert table.flat.tolist() == [CLS, 12, SEP, 13, 14, SEP]


def test_no_room_for_text_is_told():
    with pytest.raises(UserError, match=r"max_length=3 .* 3 special tokens; set it to at least 4"):
        tokenization.tokenize_responses(ENCODER, _responses(("w1", "w2")), max_length=3, pairs=True)


def test_a_decoder_without_chat_template_is_told_with_the_mend(tmp_path):
    ENCODER.save_pretrained(tmp_path)
    bare = tokenization.load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"no chat template.*instruction-tuned.*--config\.backbone\.chat_template=FILE"):
        tokenization.tokenize_responses(bare, _responses(("w1", "w2")), max_length=9)
    with pytest.raises(UserError, match=f"{tmp_path}.*no chat template"):
        tokenization.tokenize_dialogues(bare, DIALOGUES, max_length=9)


def test_a_chat_template_of_the_users_own_takes_the_place_of_the_tokenizers(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}")
    own = tokenization.load_tokenizer(tmp_path, chat_template=str(file))
    table = tokenization.tokenize_responses(own, _responses(("a", "b")), max_length=50)
    assert own.decode(table.flat) == " user:a;assistant:b;"


def test_every_field_of_a_message_reaches_the_template_or_the_text(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}{{ m.name }}:{{ m.tool_calls }}:{{ m.content }};{% endfor %}")
    rows = _responses(("a", "b")).to_pylist()
    rows[0]["prompt"][0]["extra"], rows[0]["extra"] = '{"name": "x"}', '{"tool_calls": [3]}'
    given = pa.Table.from_pylist(rows, schema=RESPONSES)
    own = tokenization.load_tokenizer(tmp_path, chat_template=str(file))
    assert own.decode(tokenization.tokenize_responses(own, given, max_length=50).flat) == " x::a;:[3]:b;"
    assert own.decode(tokenization.tokenize_prompts(own, given, max_length=50).flat) == " x::a;"
    rows[0].update(text="w2", extra="w4")
    rows[0]["prompt"][0].update(content="w1", extra="w3")
    pair = pa.Table.from_pylist(rows, schema=RESPONSES)
    table = tokenization.tokenize_responses(ENCODER, pair, max_length=50, pairs=True)
    assert table.flat.tolist() == [CLS, 11, 13, SEP, 12, 14, SEP]


def test_the_same_text_gives_the_same_tokens_on_any_day(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "own.jinja"
    # As in Llama 3.2's.
    file.write_text("{% if not date_string is defined %}{{ strftime_now('%f') }}{% else %}{{ date_string }}{% endif %}")
    own = tokenization.load_tokenizer(tmp_path, chat_template=file)
    table = tokenization.tokenize_responses(own, _responses(("a", "b")), max_length=50)
    assert own.decode(table.flat) == f" {chat_templates.DATE}"


@pytest.mark.parametrize(
    ("template", "words"),
    [("{% for m in messages %", "does not take"), ("{{ raise_exception('no system role') }}", "no system role")],
)
def test_a_chat_template_that_fails_is_told(tokenizer, tmp_path, template, words):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "own.jinja"
    file.write_text(template)
    with pytest.raises(UserError, match=f"(?s){words}.*fix the roles"):
        tokenization.tokenize_dialogues(
            tokenization.load_tokenizer(tmp_path, chat_template=file), DIALOGUES, max_length=9
        )
    with pytest.raises(UserError, match=r"none\.jinja: no readable chat template"):
        tokenization.load_tokenizer(tmp_path, chat_template=tmp_path / "none.jinja")


STRICT = """{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}
{% endif %}{{ m.content }}{% endfor %}"""


def _dialogues(count: int, bad: set[int], role: str = "system") -> pa.Table:
    prompts = [[{"role": role if n in bad else "user", "content": f"how {n} ?"}] for n in range(count)]
    columns = {"response_id": [f"r{n}" for n in range(count)], "prompt": prompts, "text": ["a test"] * count}
    columns["extra"] = [None] * count
    return pa.table(columns, schema=RESPONSES)


@pytest.mark.parametrize("chunk", [4, 4096])
def test_refused_rows_are_counted_and_named(tokenizer, chunk):
    own, bad = copy.deepcopy(tokenizer), {3, 7, 8, 9, 15, 21, 22}
    own.chat_template = STRICT
    with pytest.raises(tokenization.TextFaults) as error:
        tokenization.tokenize_responses(own, _dialogues(23, bad), max_length=50, chunk=chunk)
    assert sorted(error.value.reasons) == sorted(bad)
    told = str(error.value).splitlines()
    assert "the chat template does not take 7 of 23 texts:" in told[0]
    assert told[1:6] == [f"  row {row}: System role not supported" for row in (3, 7, 8, 9, 15)]
    assert told[6] == "  ... and 2 more"
    assert told[7].startswith("fix the roles in the data")
    kept = tokenization.tokenize_responses(own, _dialogues(23, set()), max_length=50, chunk=chunk)
    assert len(kept.lengths) == 23


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{{ 1 // 0 }}", "ZeroDivisionError: "),
        ("{{ m.content + 1 }}", "TypeError: "),
        ("{{ m.content.nothing.at.all }}", "no attribute 'nothing'"),
        ("{{ m.content | no_such_filter }}", "no_such_filter"),
    ],
)
def test_a_template_may_fail_in_any_way(tokenizer, body, words):
    own = copy.deepcopy(tokenizer)
    own.chat_template = f"{{% for m in messages %}}{{% if m.role == 'tool' %}}{body}{{% endif %}}{{% endfor %}}x"
    with pytest.raises(UserError, match=rf"(?s)does not take \d of \d texts.*  row \d: {words}|{words}"):
        tokenization.tokenize_responses(own, _dialogues(9, {4}, "tool"), max_length=50)


def test_a_template_that_takes_nothing_is_not_asked_about_every_text(tokenizer):
    own, asked = copy.deepcopy(tokenizer), []
    own.chat_template = "{{ raise_exception('never') }}"
    render = own.apply_chat_template
    own.apply_chat_template = lambda chats, **how: asked.append(1) or render(chats, **how)
    with pytest.raises(UserError, match="does not take 100 of 100 texts"):
        tokenization.tokenize_responses(own, _dialogues(700, set()), max_length=50)
    assert len(asked) <= 101


def test_texts_of_which_nothing_is_left_are_told(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(UserError, match=r"(?s)1 of 9 texts.*row 2: nothing is left of the text"):
        tokenization.tokenize_responses(own, _dialogues(9, {2}), max_length=50)


def test_a_tokenizer_that_fails_names_the_row():
    class Broken(PreTrainedTokenizerFast):
        def __call__(self, first, second=(), **how):
            if "w7" in second:
                raise TypeError("not this one")
            return super().__call__(first, second, **how)

    broken = Broken(tokenizer_object=ENCODER.backend_tokenizer)
    rows = _responses(("w1", "w2"), ("w1", "w7"), ("w3", "w2"))
    with pytest.raises(UserError, match=r"(?s)the tokenizer does not take 1 of 3 texts:.*row 1: TypeError: not this"):
        tokenization.tokenize_responses(broken, rows, max_length=9, pairs=True)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("tokenizer_config.json", [], r"tokenizer_config.json: is \[\], where an object"),
        ("special_tokens_map.json", "eos", r"special_tokens_map.json: is 'eos'"),
        ("added_tokens.json", [], r"added_tokens.json: is \[\]"),
        ("tokenizer_config.json", {"chat_template": 3, "eos_token": [1]}, r"(?s)2 faults.*chat_template: is 3; give a"),
        ("tokenizer_config.json", {"model_max_length": "512"}, r"model_max_length: is '512'; give a number"),
        ("tokenizer_config.json", {"truncation_side": "top"}, r"truncation_side: is 'top'; give \"left\""),
        ("tokenizer_config.json", {"tokenizer_class": ["A"], "add_bos_token": True}, r"1 fault\).*\n.*tokenizer_class"),
    ],
)
def test_files_beside_a_tokenizer_are_told_by_field(tokenizer, tmp_path, name, value, words):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / name).write_text(json.dumps(value))
    with pytest.raises(UserError, match=words):
        tokenization.load_tokenizer(tmp_path)
