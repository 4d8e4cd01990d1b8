"""The one table: every method on every data set that two CPU cores hold, within an hour.

command   python -m experiments.compare --config=configs/compare_small.py --workdir=runs/compare \
              --config.crowdrag_path=../shared/data/crowdrag --publish=RESULTS.md
variants  (none) three seeds; one_seed; smoke: a minute, for tests, too small to mean anything
hardware  2 CPU cores, 8 GB of memory
data      UF-P-2, UF-P-4 and PersonalLLM's tastes on the synthetic world, the same number of pairs a user (ALL) or any
          from one on (AVG); Crowd RAG, which is left out (the report says so) without --config.crowdrag_path=DIR, a
          clone of github.com/webis-de/sigir25-rag-crowdsourcing
smaller   than configs/synthetic.py in users, batches and steps, so that the table is done within the hour: every method
          that trains the transformer gets 130 batches of 32 pairs, every network on features 200 of 128; decoders are
          pretrained once a seed and shared by all sets (config.decoders), compiled programs kept
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, crowdrag
from configs.synthetic import NAMES, SETTINGS

VARIANTS = (("one_seed",), ("smoke",))
# All rows of the table, in its order; a test compares them with experiments/methods.py.
METHODS = (
    "shared reward",
    "group oracle",
    "CoPL",
    "CoPL (features)",
    "CoPL (balancing loss)",
    "CoPL (balancing bias)",
    "CoPL + shrinkage",
    "pretrained head",
    "shared (features)",
    "oracle (features)",
    "per-user model",
    "LoRe (published)",
    "LoRe",
    "LoRe (principal)",
    "deep LoRe",
    "leave-one-out majority",
    "I2E",
    "VPL",
    "PAL-A",
    "PAL-B",
    "GPO",
    "SPL",
    "MRM",
    "HyRe",
    "P-TTT",
    "P-TTT (solved)",
    "P-RLHF",
    "I2E (features)",
    "VPL (features)",
    "PAL-A (features)",
    "PAL-B (features)",
    "GPO (features)",
    "SPL (features)",
    "MRM (features)",
    "HyRe (features)",
    "P-TTT (features)",
    "P-TTT (solved) (features)",
    "formatting-only",
)
EMBEDDED: dict[str, dict[str, Any]] = {**SETTINGS, "personalllm_avg": {**SETTINGS["personalllm"], "protocol": "AVG"}}
TITLES = {**NAMES, "personalllm": "PersonalLLM ALL", "personalllm_avg": "PersonalLLM AVG"}
ADAPTED_HEADS = ("I2E", "VPL", "PAL-A", "PAL-B", "GPO", "SPL", "MRM", "HyRe", "P-TTT", "P-TTT (solved)")
ADAPTED = ("shared reward", "CoPL", "deep LoRe", "P-RLHF")
ORACLES, HEAD = ("group oracle", "oracle (features)"), "pretrained head"
STUDIES = ("CoPL (balancing loss)", "CoPL (balancing bias)", "CoPL + shrinkage")
# Every table says what it leaves out, and why.
LEFT_OUT = {
    STUDIES: "studies of their own",
    (HEAD,): "the backbone has no score head",
    ADAPTED_HEADS: "a training of the transformer each, for which the hour has no room; here they stand on its frozen "
    "features, beside them in results/adapted_heads",
}
CROWDRAG_LEFT_OUT = {
    STUDIES: LEFT_OUT[STUDIES],
    (HEAD,): LEFT_OUT[HEAD,],
    ADAPTED_HEADS + ADAPTED: "minutes a seed each on these long texts; shared reward and CoPL are in results/crowdrag",
    ORACLES: "nobody knows these people's groups",
}


def get_config(variant: str = "") -> ConfigDict:
    seeds, size = common.choose(variant, *VARIANTS)
    config: Any = ConfigDict({"dataset": "Methods and data sets, small", "keep_compiled": True})
    config.seeds = (0,) if seeds == "one_seed" or size == "smoke" else (0, 1, 2)
    config.crowdrag_path = ""
    config.decoders = "runs/decoders"
    config.datasets = ConfigDict({name: _embedded(name, smoke=size == "smoke") for name in EMBEDDED})
    config.datasets.crowdrag = _crowdrag()
    config.datasets.crowdrag.source.path = config.get_ref("crowdrag_path")
    for name in config.datasets:
        own: Any = config.datasets[name]
        own.seeds = config.get_ref("seeds")
        if "pretrain" in own:
            own.pretrain.folder = config.get_ref("decoders")
    return config


def _embedded(name: str, *, smoke: bool) -> Any:
    setting = EMBEDDED[name]
    grouped = setting["tastes"] != "dirichlet"
    left_out = LEFT_OUT if grouped else {**LEFT_OUT, ORACLES: "everyone's taste is their own: there are no groups"}
    source = common.world(**setting, seen_users=300, unseen_users=80, test_pairs_per_user=15)
    config = common.small(f"synthetic {TITLES[name]}", _methods(left_out), source)
    config.left_out = _told(left_out)
    _smaller(config)
    config.baselines.context = setting["pairs_per_user"]  # what LoRe and CoPL read of an unseen user, too
    if smoke:
        common.shrink(config)
        config.source.pairs_per_user = min(config.source.pairs_per_user, 4)
    return config


def _smaller(config: Any) -> None:
    """Half the batch of configs/common.py."""
    config.reward.update({"batch_size": 32, "checkpoint_every": 0})
    config.reward.optimizer.num_steps = 130
    config.deep.update({"users_per_batch": 32 // config.deep.pairs_per_user, "checkpoint_every": 0})
    config.deep.optimizer.num_steps = 130


def _crowdrag() -> Any:
    config: Any = crowdrag.get_config("linear")
    config.methods, config.left_out = _methods(CROWDRAG_LEFT_OUT), _told(CROWDRAG_LEFT_OUT)
    return config


def _methods(left_out: dict[tuple[str, ...], str]) -> tuple[str, ...]:
    absent = {name for names in left_out for name in names}
    return tuple(name for name in METHODS if name not in absent)


def _told(left_out: dict[tuple[str, ...], str]) -> tuple[str, ...]:
    return tuple(f"{', '.join(names)}: {why}" for names, why in left_out.items())
