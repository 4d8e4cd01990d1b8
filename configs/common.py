"""What config files share."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from copl_jax.graph import settings as recipes
from copl_jax.graph.settings import GCFConfig
from lore_jax.fitting.settings import PublishedConfig
from pref_jax.baselines.settings import BaselinesConfig
from pref_jax.data import sources
from pref_jax.errors import UserError

# How parameters and batches are cut, by hardware.
MESHES = {"tpu_v5e_8": {"data": 1, "fsdp": 8, "tensor": 1}, "h200": {"data": 1, "fsdp": 1, "tensor": 1}}


def choose(variant: str, *alternatives: tuple[str, ...]) -> tuple[str, ...]:
    """Reads a variant such as "uf_p_4_avg,three_seeds": at most one word of each of the alternatives, in any order.

    Returns:
      For each of the alternatives its word, "" if it has none.

    Raises:
      UserError: naming the words there are.
    """
    words = [word.strip() for word in variant.split(",")] if variant else []
    chosen = [[word for word in words if word in known] for known in alternatives]
    if sum(map(len, chosen)) < len(words) or any(len(found) > 1 for found in chosen):
        known = "; ".join(" or ".join(words) for words in alternatives)
        raise UserError(f"config variant {variant!r} is unknown; known: (none), or by commas: {known}")
    return tuple(found[0] if found else "" for found in chosen)


def backbone(name: str, *, max_length: int, batch_size: int) -> Any:
    """The transformer, and how features are taken from it: pref_jax/lm/features.py.

    `name` is a folder, a package: path, a hub id, or `pretrain`, which makes one.
    """
    return ConfigDict(
        {
            "name": name,
            "max_length": max_length,  # tokens of a text; longer ones lose their beginning
            "chat_template": "",  # a Jinja file in place of the tokenizer's own template
            "dtype": "float32",  # of the frozen weights; bfloat16 halves their memory
            "pooling": "",  # last | mean: what stands for a text, also in reward models; "" as the model is made for
            "layer": -1,  # features after so many blocks; -1 after the last one and the final norm
            "batch_size": batch_size,  # rows that features are computed for at a time, over all devices
            "packing": False,  # several short texts in one row
        }
    )


def graph(recipe: Callable[..., GCFConfig] = recipes.linear_config, **changes: Any) -> Any:
    """User embeddings: copl_jax/graph/gcf.py, by a recipe of copl_jax/graph/training.py. `changes` replace fields."""
    return ConfigDict(dataclasses.asdict(recipe(**changes)))


def reward(
    *, batch_size: int, eval_batch_size: int, num_steps: int, lr: float, holdout_fraction: float, head: bool = False
) -> Any:
    """Reward models, alike for CoPL, the shared reward and the group oracle: copl_jax/reward/reward_model.py.

    `holdout_fraction` is the part of the prompts left for a choice between trained models; 0 where nothing is chosen.
    With `head` CoPL and the oracle have experts in the head too: copl_jax/reward/linear_experts.py.
    """
    config: Any = ConfigDict(
        {
            "batch_size": batch_size,
            "accumulate": 1,
            "holdout_fraction": holdout_fraction,
            "eval_batch_size": eval_batch_size,
            "checkpoint_every": 50,
            "log_every": 10,
            "share_prefix": True,  # decoders read the beginning that a pair's texts share once, where that saves work
            "ties": True,  # ties are learned from; False: left out
            "strengths": "levels",  # what strengths of votes are for: levels, weight, margin, ignore
            "remat": "none",  # what the backward pass keeps of a block: all, "dots" its products, "full" nothing
            "experts": {"num_experts": 8, "rank": 8, "dropout": 0.1, "targets": ("q_proj", "v_proj")},
            "gate": {
                "hidden": 256,
                "noise": 0.1,
                "temperature": 1.0,
                "top_k": 1,  # experts of a user beside the shared one
                # what keeps experts from dying: none, loss or bias, see copl_jax/reward/load_balancing.py
                "balance": "none",
                "balance_weight": 0.3,  # of that loss
                "balance_rate": 0.5,  # of that bias: logits in the first step, less in each later one
            },
            "optimizer": {
                "lr": lr,
                "num_steps": num_steps,
                "weight_decay": 1e-3,
                "warmup_fraction": 0.03,
                "clip": 1.0,
            },
        }
    )
    if head:
        config.head = {"num_gates": 24, "steps": 1000}
    return config


def deep(*, users_per_batch: int, eval_batch_size: int, num_steps: int, lr: float) -> Any:
    """Deep LoRe, its basis on the adapted transformer: lore_jax/deep.py; batches: pref_jax/data/loaders/episodes.py."""
    return ConfigDict(
        {
            "users_per_batch": users_per_batch,
            "pairs_per_user": 8,  # at most, in a batch
            "splits": 4,  # of a user's pairs in a batch into those to solve from and those to predict
            "accumulate": 1,
            "prior_lr_mult": 10.0,  # learning rate of the users' prior, in that of the optimizer
            "eval_batch_size": eval_batch_size,
            "checkpoint_every": 50,
            "log_every": 10,
            "share_prefix": True,  # as for reward models
            "model": {
                "basis": 4,
                "solver": "logistic",  # or ridge
                "rank": 8,
                "targets": ("q_proj", "v_proj"),
                "remat": "none",
            },
            "optimizer": {
                "lr": lr,
                "num_steps": num_steps,
                "weight_decay": 1e-3,
                "warmup_fraction": 0.03,
                "clip": 1.0,
            },
        }
    )


def world(tastes: str = "uf_p_2", **changes: Any) -> Any:
    """The synthetic language world: pref_jax/data/sources/synthetic/world.py. `changes` replace fields."""
    config: Any = ConfigDict(
        {
            "name": "world",
            "tastes": tastes,
            "dirichlet_alpha": 0.1,
            "protocol": "ALL",
            "seen_users": 500,
            "unseen_users": 100,
            "pairs_per_user": 8,
            "test_pairs_per_user": 20,
            "train_prompts": 250,
            "test_prompts": 100,
            "responses_per_prompt": 4,
            "contested_only": True,
            "label_noise": 0.0,
            "marker_noise": 0.15,
        }
    )
    config.update(changes)
    return config


def public(name: str, **changes: Any) -> Any:
    """A public data set with all options of its reader in pref_jax/data/sources. `changes` replace options.

    `path` is its id on the hub; --config.source.path=DIR names a folder with the downloaded files.
    """
    parameters = inspect.signature(sources.reader(name)).parameters
    options = {key: option.default for key, option in parameters.items() if key != "seed"}
    config: Any = ConfigDict({"name": name, **options})
    config.update(changes)
    return config


def votes() -> Any:
    """Your own votes, of which the path is to be given: pref_jax/data/sources/jsonl/reader.py."""
    return rows("jsonl", columns="", on_bad_row="error")


def rows(name: str, **more: Any) -> Any:
    """Votes that are split by pref_jax/data/sources/common/split_rule.py, of which the path is to be given."""
    fractions = {"validation_fraction": 0.1, "test_fraction": 0.2, "unseen_fraction": 0.2}
    rule = {"split_by": "prompt", "min_votes_per_user": 1}
    return ConfigDict({"name": name, "path": "", **fractions, **rule, **more})


def pretrain() -> Any:
    """A small decoder made on the world's text, for `backbone.name` "pretrain".

    With a `folder`, runs share what they pretrain with the same settings and seed; without, each keeps its own.
    """
    return ConfigDict(
        {
            "folder": "",
            "dialogues": 10_000,
            "glossaries": 5_000,
            "max_length": 64,
            "batch_size": 64,
            "checkpoint_every": 200,
            "lm": {
                "family": "llama",
                "vocab_size": 2048,
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_layers": 3,
                "num_heads": 4,
                "max_positions": 256,
            },
            "optimizer": {
                "lr": 3e-3,
                "num_steps": 700,
                "weight_decay": 0.01,
                "warmup_fraction": 0.05,
                "clip": 1.0,
                "b2": 0.95,
            },
        }
    )


def small(dataset: str, methods: tuple[str, ...], source: Any) -> Any:
    """An experiment on the synthetic world that two CPU cores hold, decoder included."""
    config: Any = ConfigDict({"dataset": dataset, "seeds": (0,), "methods": methods})
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.source = source
    config.backbone = backbone("pretrain", max_length=64, batch_size=128)
    config.pretrain = pretrain()
    config.refresh_seen = (
        True  # seen users embedded again from their answers, as unseen ones: copl_jax/graph/cold_start.py
    )
    config.graph = graph()
    # Chosen on worlds of other seeds (10, 11). At 2e-3 one training of ten did not recover from a bad step, and with
    # twice the steps CoPL learns the training prompts' words.
    config.reward = reward(
        batch_size=64, eval_batch_size=256, num_steps=100, lr=1.5e-3, holdout_fraction=0.0, head=True
    )
    config.lore = ConfigDict({})  # lore_jax/fitting/model_selection.py
    config.deep = deep(users_per_batch=8, eval_batch_size=256, num_steps=130, lr=2e-3)
    config.baselines = baselines()
    return config


def baselines(**changes: Any) -> Any:
    """Personal baselines: experiments/baselines/settings.py. `changes` replace fields."""
    return ConfigDict(dataclasses.asdict(BaselinesConfig(**changes)))


def shrink(config: Any) -> None:
    """Makes an experiment on the synthetic world end in seconds, too small to mean anything: for tests."""
    config.source.update({"seen_users": 24, "unseen_users": 6, "train_prompts": 12, "test_prompts": 8})
    config.pretrain.update({"dialogues": 64, "glossaries": 32, "batch_size": 8, "checkpoint_every": 4})
    config.pretrain.lm.update({"vocab_size": 512, "hidden_size": 16, "intermediate_size": 32, "num_layers": 2})
    config.pretrain.optimizer.num_steps = 8
    config.graph.update({"dim": 8, "num_layers": 2, "epochs": 4, "evaluate_every": 2})
    config.reward.update({"batch_size": 8, "eval_batch_size": 64, "checkpoint_every": 4, "log_every": 2})
    config.reward.experts.update({"num_experts": 2, "rank": 2})
    config.reward.gate.hidden = 8
    config.reward.head.update({"num_gates": 2, "steps": 6})
    config.reward.optimizer.num_steps = 8
    config.deep.update({"users_per_batch": 8, "splits": 2, "eval_batch_size": 64})
    config.deep.update({"checkpoint_every": 4, "log_every": 2})
    config.deep.model.update({"basis": 2, "rank": 2})
    config.deep.optimizer.num_steps = 8
    config.baselines.update({"hidden": 8, "embedding": 4, "batch_size": 16, "steps": (6,), "soft_tokens": 2})
    config.lore.update(
        {"steps": 5, "ranks": (1,), "components": (2,), "variances": (3.0,), "shared_variances": (0.1, 1.0)}
    )
    config.lore.line_search = "bisection"  # which compiles in a fifth of the time
    if "studies" in config:
        config.pretrain.folder = ""
        config.source.pairs_per_user = min(config.source.pairs_per_user, 16)  # there are few prompts
        config.published.update({"rank": 2, "steps": 20})
        config.studies.update({"ranks": (1, 2), "shots": (1, 4), "trials": 3, "alphas": config.studies.alphas[:2]})


def studies(**changes: Any) -> Any:
    """Studies of LoRe: experiments/studies/lore_studies.py. `changes` replace fields; () leaves a study out."""
    config: Any = ConfigDict(
        {"ranks": (1, 2, 4, 8), "shots": (5, 10, 20, 30, 50), "trials": 20, "alphas": (0.01, 0.1, 1.0)}
    )
    config.update(changes)
    return config


def published(**changes: Any) -> Any:
    """The published LoRe recipe: experiments/linear.py. `changes` replace fields."""
    return ConfigDict(dataclasses.asdict(PublishedConfig(**changes)))


# LoRe's quick search: lore_jax/fitting/bradley_terry.py, `LoReConfig.quick`.
QUICK_LORE = {"components": (4, 6), "simplex": False, "clusters": 0, "line_search": "bisection"}
LORE_VARIANTS = (("cpu", *MESHES), ("three_seeds",), ("smoke",))
LORE_METHODS = ("pretrained head", "shared (features)", "per-user model", "LoRe (published)", "LoRe")


def lore(variant: str, small: Callable[[], Any], large: Callable[[str], Any]) -> Any:
    """A study of LoRe by a word of `LORE_VARIANTS`: `small()` on two cores, `large(hardware)` on TPU and GPU."""
    hardware, seeds, size = choose(variant, *LORE_VARIANTS)
    config = large(hardware) if hardware in MESHES and size != "smoke" else small()
    if size == "smoke":
        shrink(config)
    config.seeds = (0, 1, 2) if seeds == "three_seeds" else (0,)
    return config


def lore_small(dataset: str, source: Any, methods: tuple[str, ...] = LORE_METHODS) -> Any:
    """LoRe on the synthetic world: two CPU cores hold it, its decoder is shared in runs/decoders."""
    config = small(dataset, methods, source)
    config.pretrain.folder = "runs/decoders"
    return config


def lore_skywork(dataset: str, hardware: str, *, max_length: int, source: Any) -> Any:
    """LoRe on features of Skywork's reward model of 8 B parameters, as in the paper.

    Graph, reward models and deep LoRe, which `experiments.compare` could add, are those of configs/copl.py.
    """
    config: Any = ConfigDict({"dataset": dataset, "seeds": (0,), "methods": LORE_METHODS})
    config.mesh = ConfigDict(MESHES[hardware])
    config.source = source
    config.backbone = backbone("Skywork/Skywork-Reward-Llama-3.1-8B-v0.2", max_length=max_length, batch_size=32)
    config.backbone.dtype = "bfloat16"
    config.refresh_seen = False
    config.graph = graph(dim=512)
    config.reward = reward(batch_size=128, eval_batch_size=32, num_steps=1500, lr=5e-5, holdout_fraction=0.0)
    config.reward.update({"accumulate": 16, "remat": "full"})
    config.lore = ConfigDict({})
    config.deep = deep(users_per_batch=16, eval_batch_size=32, num_steps=1500, lr=5e-5)
    config.deep.accumulate = 2
    config.deep.model.remat = "full"
    return config
