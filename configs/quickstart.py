"""CoPL and LoRe against one shared reward on embedded data: two kinds of users, no download.

command   make quickstart
          python -m experiments.quickstart --workdir=runs/quickstart
variants  (none) one seed; three_seeds; tiny: seconds, for tests, of no use as a result
hardware  2 CPU cores, 2 GB of memory
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

VARIANTS = ("three_seeds", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    common.check_variant(variant, *VARIANTS)
    config: Any = ConfigDict()
    config.dataset = "embedded UF-P-2"
    config.seeds = (0, 1, 2) if variant == "three_seeds" else (0,)
    config.methods = (
        "shared reward",
        "group oracle",
        "CoPL",
        "shared (features)",
        "oracle (features)",
        "LoRe",
    )
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    # The world: pref_jax/data/sources/world.py
    config.source = ConfigDict(
        {
            "name": "world",
            "tastes": "uf_p_2",
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
    config.backbone = common.backbone("pretrain", max_length=64, batch_size=128)
    config.pretrain = ConfigDict(
        {
            "dialogues": 10_000,
            "glossaries": 5_000,
            "max_length": 64,
            "batch_size": 64,
            "checkpoint_every": 200,
            "lm": {
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
    config.graph = common.graph()
    config.reward = common.reward(batch_size=64, eval_batch_size=256, num_steps=130, lr=2e-3, hold_out=0.0)
    # LoRe: lore_jax/fit.py
    config.lore = ConfigDict({})
    if variant == "tiny":
        _shrink(config)
    return config


def _shrink(config: Any) -> None:
    config.source.update({"seen_users": 24, "unseen_users": 6, "train_prompts": 12, "test_prompts": 8})
    config.pretrain.update({"dialogues": 64, "glossaries": 32, "batch_size": 8, "checkpoint_every": 4})
    config.pretrain.lm.update({"vocab_size": 512, "hidden_size": 16, "intermediate_size": 32, "num_layers": 2})
    config.pretrain.optimizer.num_steps = 8
    config.graph.update({"dim": 8, "num_layers": 2, "epochs": 4})
    config.reward.update({"batch_size": 8, "eval_batch_size": 64, "checkpoint_every": 4, "log_every": 2})
    config.reward.experts.update({"num_experts": 2, "rank": 2})
    config.reward.gate.hidden = 8
    config.reward.optimizer.num_steps = 8
    config.lore.update(
        {"steps": 5, "ranks": (1,), "components": (2,), "variances": (3.0,), "shared_variances": (0.1, 1.0)}
    )
