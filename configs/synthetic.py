"""CoPL in the papers' four settings and on PersonalLLM's tastes, on the synthetic world: no download.

command   python -m experiments.compare --config=configs/synthetic.py:uf_p_4_avg --workdir=runs/uf_p_4_avg
          python -m experiments.compare --config=configs/synthetic.py:personalllm,three_seeds --workdir=runs/personalllm
variants  uf_p_2_all (also without a word), uf_p_2_avg: users care for helpfulness or honesty, 8 pairs a user
          uf_p_4_all, uf_p_4_avg: one of four attributes, 16 pairs
          personalllm: weights over the four, Dirichlet(0.1), 16 pairs; no groups, so no group oracle
          uf_p_4_all and personalllm also with both ways to balance experts
          after a comma: three_seeds; smoke: seconds, for tests, too small to mean anything
          ALL gives every user the same number of pairs, AVG a uniform one of the same mean
hardware  2 CPU cores, 2 GB of memory
decoder   pretrained once a seed and shared by all variants, in runs/decoders (config.pretrain.folder; "" for none)
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

SETTINGS: dict[str, dict[str, Any]] = {
    "uf_p_2_all": {"tastes": "uf_p_2", "pairs_per_user": 8},
    "uf_p_2_avg": {"tastes": "uf_p_2", "pairs_per_user": 8, "protocol": "AVG"},
    "uf_p_4_all": {"tastes": "uf_p_4", "pairs_per_user": 16},
    "uf_p_4_avg": {"tastes": "uf_p_4", "pairs_per_user": 16, "protocol": "AVG"},
    "personalllm": {"tastes": "dirichlet", "dirichlet_alpha": 0.1, "pairs_per_user": 16},
}
NAMES = {
    "uf_p_2_all": "UF-P-2 ALL",
    "uf_p_2_avg": "UF-P-2 AVG",
    "uf_p_4_all": "UF-P-4 ALL",
    "uf_p_4_avg": "UF-P-4 AVG",
    "personalllm": "PersonalLLM",
}
VARIANTS = (tuple(SETTINGS), ("three_seeds",), ("smoke",))


def get_config(variant: str = "") -> ConfigDict:
    setting, seeds, size = common.choose(variant, *VARIANTS)
    setting = setting or "uf_p_2_all"
    grouped = SETTINGS[setting]["tastes"] != "dirichlet"
    methods = ("shared reward", *(("group oracle",) if grouped else ()), "CoPL")
    if setting in ("uf_p_4_all", "personalllm"):
        methods += ("CoPL (balancing loss)", "CoPL (balancing bias)")
    config = common.small(f"synthetic {NAMES[setting]}", methods, common.world(**SETTINGS[setting]))
    config.seeds = (0, 1, 2) if seeds == "three_seeds" else (0,)
    config.pretrain.folder = "runs/decoders"
    if SETTINGS[setting]["pairs_per_user"] == 16:
        # Reward models see each pair as often as with 8 pairs a user.
        config.reward.optimizer.num_steps = 200
    if size == "smoke":
        common.shrink(config)
    return config
