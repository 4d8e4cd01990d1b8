"""A tokenizer that makes tokens without an embedding."""

import jax
import pytest
import tiny

from pref_jax.data.text.tokenization import train_tokenizer
from pref_jax.errors import UserError
from pref_jax.lm import backbone, checkpoint
from pref_jax.lm.text_model import TextModel, as_responses


def text_model(folder, added, template):
    """A small decoder whose tokenizer got more tokens than its embedding has."""
    tokenizer = train_tokenizer(["how do I boil an egg"], vocab_size=300)
    config = tiny.llama(vocab_size=len(tokenizer), pad_token_id=0)
    checkpoint.save(folder, config, backbone.init(config, jax.random.key(0)))
    tokenizer.add_special_tokens({"extra_special_tokens": added})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return TextModel(name=str(folder)), len(tokenizer) - len(added)


def test_tokens_without_an_embedding_are_named(tmp_path):
    template = "{% for m in messages %}{{ '<|turn|>' + m['content'] }}{% endfor %}"
    model, size = text_model(tmp_path, ["<|turn|>"], template)
    rows = as_responses(["boil?"], ["an egg"])
    for read in (model.tokenize, model.tokenize_prompts):
        with pytest.raises(UserError) as caught:
            read(rows)
        assert f"'<|turn|>' (id {size}), as vocab_size is {size}" in str(caught.value)
        assert f"resize_token_embeddings to {size + 1}" in str(caught.value)


def test_tokens_that_no_text_holds_do_no_harm(tmp_path):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model, size = text_model(tmp_path, ["<|unused|>", "<|pad2|>"], template)
    assert model.tokenize(as_responses(["boil?"], ["an egg"])).flat.max() < size
    # Nor does one in a text, which is text.
    assert model.tokenize(as_responses(["<|unused|>"], ["<|pad2|> an egg"])).flat.max() < size
