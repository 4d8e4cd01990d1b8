"""Every config loads in every variant, and each of its sections fits what it configures."""

import importlib
import pkgutil
from typing import Any

import pytest

import configs
from configs import common
from copl_jax.experts import ExpertsConfig
from copl_jax.gates import GateConfig
from copl_jax.gcf import GCFConfig
from experiments.cli import freeze
from experiments.compare import METHODS
from lore_jax.fit import RegularisedConfig
from pref_jax.data.sources.world import WorldConfig
from pref_jax.errors import UserError
from pref_jax.lm.config import LMConfig
from pref_jax.train.state import OptimizerConfig

MODULES = [
    importlib.import_module(f"configs.{found.name}")
    for found in pkgutil.iter_modules(configs.__path__)
    if found.name != "common"
]
CASES = [(module, variant) for module in MODULES for variant in ("", *module.VARIANTS)]


@pytest.mark.parametrize(("module", "variant"), CASES)
def test_sections_fit(module, variant):
    config: Any = module.get_config(variant)
    assert set(config.methods) <= set(METHODS)
    freeze(GCFConfig, config.graph, "graph")
    freeze(GateConfig, config.reward.gate, "reward.gate")
    freeze(ExpertsConfig, config.reward.experts, "reward.experts")
    freeze(OptimizerConfig, config.reward.optimizer, "reward.optimizer")
    freeze(RegularisedConfig, config.lore, "lore")
    assert set(config.backbone) == set(common.backbone("", max_length=1, batch_size=1))
    assert config.source.name in ("world", "crowdrag", "jsonl")
    if config.source.name == "world":
        options = config.source.to_dict()
        options.pop("name")
        freeze(WorldConfig, options, "source")
        freeze(LMConfig, config.pretrain.lm, "pretrain.lm", family="llama")
        freeze(OptimizerConfig, config.pretrain.optimizer, "pretrain.optimizer")


@pytest.mark.parametrize("module", MODULES)
def test_a_config_says_how_to_launch_it_and_knows_its_variants(module):
    assert all(word in module.__doc__ for word in ("command", "variants", "hardware", *module.VARIANTS))
    with pytest.raises(UserError, match="variant 'tinny' is unknown"):
        module.get_config("tinny")
