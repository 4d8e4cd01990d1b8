"""What config files share."""

from typing import Any

from ml_collections import ConfigDict

from pref_jax.errors import UserError


def check_variant(variant: str, *known: str) -> None:
    """Refuses a variant that the config does not have.

    Raises:
      UserError: naming those it has.
    """
    if variant and variant not in known:
        raise UserError(f"config variant {variant!r} is unknown; known: (none), {', '.join(known)}")


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


def graph() -> Any:
    """User embeddings by the fast recipe: copl_jax/gcf.py."""
    config: Any = ConfigDict(
        {
            "variant": "official",
            "dim": 64,
            "num_layers": 4,
            "edge_dropout": 0.1,
            "learning_rate": 1e-2,
            "epochs": 40,
            "evaluate_every": 2,
        }
    )
    config.batch_size = None  # all pairs in every step
    return config


def reward(*, batch_size: int, eval_batch_size: int, num_steps: int, lr: float, hold_out: float) -> Any:
    """Reward models, alike for CoPL, the shared reward and the group oracle: copl_jax/reward.py.

    `hold_out` is the part of the prompts left for a choice between trained models; 0 where nothing is chosen.
    """
    return ConfigDict(
        {
            "batch_size": batch_size,
            "accumulate": 1,
            "hold_out": hold_out,
            "eval_batch_size": eval_batch_size,
            "checkpoint_every": 50,
            "log_every": 10,
            "remat": "none",  # what the backward pass keeps of a block: all, "dots" its products, "full" nothing
            "experts": {"num_experts": 8, "rank": 8, "dropout": 0.1, "targets": ("q_proj", "v_proj")},
            "gate": {
                "hidden": 256,
                "noise": 0.1,
                "temperature": 1.0,
                "top_k": 1,  # experts of a user beside the shared one
                "balance": "none",  # what keeps experts from dying: none, loss or bias, see copl_jax/balance.py
                "balance_weight": 1e-2,  # of that loss
                "balance_rate": 5e-2,  # of that bias: logits a step
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
