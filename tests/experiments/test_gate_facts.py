"""What is told of trained gates: use by group, and experts that no seen user is sent to."""

import numpy as np
import tiny

from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.reward_model import RewardConfig
from copl_jax.reward.training import gate_facts

CONFIG = RewardConfig(lm=tiny.llama(), routing="groups", mixture=ExpertsConfig(num_experts=4))


def test_experts_of_unseen_users_only_are_dead():
    experts = np.array([0, 0, 1, 2, 0], np.int32)
    seen = np.array([True, True, True, False, True])
    facts = gate_facts(CONFIG, {}, experts, seen, ["a", "a", "b", "b", None])
    assert facts["gates"] == ["q_proj 0", "q_proj 1", "v_proj 0", "v_proj 1"]
    assert facts["num_gates"] == 4
    assert facts["dead_experts_by_gate"] == [2, 2, 2, 2]
    assert facts["dead_experts"] == 8
    expected = {"a": [1, 0, 0, 0], "b": [0, 0.5, 0.5, 0], "everyone": [1, 0, 0, 0]}
    assert facts["expert_usage"] == {name: [use] * 4 for name, use in expected.items()}
    assert facts["gate_entropy"] == 0
