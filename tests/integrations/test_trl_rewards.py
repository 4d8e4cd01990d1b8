"""TRL's own trainers under a personal reward: policies that become what their user likes; its data sets, both ways."""

import asyncio
import inspect
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tastes

from pref_jax.data.votes import read_votes
from pref_jax.errors import UserError
from pref_jax.integrations import trl as personal

torch = pytest.importorskip("torch", reason="TRL's trainers need the extra `parity`")
trl = pytest.importorskip("trl", reason="TRL's trainers need the extra `parity`")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
CHAT = [{"role": "user", "content": "lunch"}]


@pytest.fixture(autouse=True)
def _one_thread():
    """So small a policy is trained faster by one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trainer(rewards: Any, users: list[Any], out: Path, **options: Any) -> Any:
    """TRL's GRPOTrainer for a fresh tiny policy and every prompt for every user."""
    model, tokenizer = tastes.policy()
    rows = [{"prompt": prompt, "user": user} for prompt in tastes.PROMPTS for user in users]
    how: dict[str, Any] = {"per_device_train_batch_size": 32, "num_generations": 8, "max_completion_length": 5}
    how |= {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "max_steps": 12, "logging_steps": 1, "seed": 3}
    how |= {"report_to": [], "use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True}
    return trl.GRPOTrainer(
        model,
        reward_funcs=rewards,
        args=trl.GRPOConfig(output_dir=str(out), **how | options),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def liked(model: Any) -> dict[str, float]:
    """Mean true reward of a policy's answers for both users."""
    tokenizer = tastes.policy()[1]
    ids = tokenizer(list(tastes.PROMPTS) * 32, return_tensors="pt", padding=True)
    torch.manual_seed(0)
    with torch.no_grad():
        found = model.generate(
            input_ids=ids.input_ids, attention_mask=ids.attention_mask, do_sample=True, max_new_tokens=5
        )
    texts = tokenizer.batch_decode(found[:, 1:], skip_special_tokens=True)
    return {user: float(np.mean([tastes.taste(user, text) for text in texts])) for user in tastes.LIKED}


def test_two_users_policies_become_what_their_votes_say(model, tmp_path):
    untrained = liked(tastes.policy()[0])
    assert all(abs(value) < 0.5 for value in untrained.values())
    ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "ada": ({"uncertainty": True}, {}),
        "bo": ({"vector": True, "group_size": 8}, {"scale_rewards": "batch"}),
    }
    for user, (options, how) in ways.items():
        other = next(name for name in tastes.LIKED if name != user)
        reward = personal.reward_function(model, **options)
        run = trainer(reward, [user], tmp_path / user, **how)
        run.train()
        found = liked(run.model)
        assert found[user] > 3, found
        assert found[other] < -3, found
        last = run.state.log_history[-2]
        assert last["personal_reward/shared"] == last["personal_reward/constant"] == 0
        assert ("personal_reward/deviation" in last) == (user == "ada")
        assert reward.counts["answers"] == 12 * 32
        if user == "ada":
            assert len(run._logs["extra"]["personal_reward/deviation"]) == len(run._logs["completion"])


def test_a_batch_of_several_users_is_normalised_as_trl_does_for_one(model, tmp_path):
    functions, weights = personal.basis_functions(model, "ada")
    assert [function.__name__ for function in functions] == [f"basis_{place}" for place in range(len(weights))]
    # No answer is empty: what those are worth has no place in the comparison.
    one: dict[str, Any] = {"max_steps": 1, "generation_kwargs": {"min_new_tokens": 5}}
    gdpo = {"reward_weights": weights, "multi_objective_aggregation": "normalize_then_sum"}
    theirs = trainer(functions, ["ada"], tmp_path / "theirs", **one, **gdpo)
    theirs.train()
    assert functions[0].counts["answers"] == 32 + 1, "K functions read a batch once, and the weights one text"
    vector = personal.reward_function(model, vector=True)
    ours = trainer(vector, ["ada"], tmp_path / "ours", **one, scale_rewards="batch")
    ours.train()
    assert list(ours._logs["completion"]) == list(theirs._logs["completion"])
    assert vector.counts["empty"] == 0
    np.testing.assert_allclose(ours._logs["advantages"], theirs._logs["advantages"], rtol=1e-3, atol=1e-3)
    # With the reward itself it is plain GRPO, up to the mean of a group.
    plain = trainer(personal.reward_function(model), ["ada"], tmp_path / "plain", **one)
    plain.train()
    summed = trainer(functions, ["ada"], tmp_path / "sum", **one, reward_weights=weights)
    summed.train()
    np.testing.assert_allclose(summed._logs["advantages"], plain._logs["advantages"], rtol=1e-3, atol=1e-3)


def test_weights_put_into_rewards_would_leave_their_signs_alone(model):
    """Why K functions that return w_uk z_k are no reward of a user under normalise-then-sum."""
    z = np.random.default_rng(0).normal(size=(1, 8, 3))

    def theirs(rewards: np.ndarray) -> np.ndarray:
        spread = rewards.std(axis=1, ddof=1, keepdims=True)
        return ((rewards - rewards.mean(axis=1, keepdims=True)) / (spread + 1e-4)).sum(-1)

    strong, weak = theirs(z * [9.0, 0.1, -1.0]), theirs(z * [0.1, 9.0, -1.0])
    np.testing.assert_allclose(strong, weak, atol=1e-2)


def test_an_asynchronous_function_runs_in_trl_for_users_of_all_kinds(model, tmp_path):
    reward = personal.reward_function(model, asynchronous=True, name="taste")
    assert inspect.iscoroutinefunction(reward)
    run = trainer(reward, ["ada", "eve", None, "bo"], tmp_path, max_steps=1, per_device_train_batch_size=128)
    run.train()
    assert reward.counts["unknown_user"] == reward.counts["missing_user"] == 32
    assert run.state.log_history[0]["taste/shared"] == 0.5
    assert run.state.log_history[0]["rewards/taste/std"] > 0


def test_calls_as_trl_makes_them(model):
    logged, columns = [], []
    reward = personal.reward_function(model, uncertainty=True, user_column="rater")
    more: dict[str, Any] = {"completion_ids": [[1], [2]], "trainer_state": None, "environments": None}
    more |= {"log_metric": lambda name, value: logged.append((name, value)), "log_extra": lambda *a: columns.append(a)}
    chats = [[{"role": "assistant", "content": "tea milk"}], [{"role": "assistant", "content": "coffee"}]]
    found = reward(prompts=[CHAT] * 2, completions=chats, rater=["ada", None], **more)
    want = model.score(["ada", None], [CHAT] * 2, ["tea milk", "coffee"], uncertainty=True)
    np.testing.assert_allclose(found, want.mean, rtol=1e-6)
    assert all(isinstance(value, float) for value in found)
    assert dict(logged)["personal_reward/shared"] == 0.5
    (column,) = columns
    assert column[0] == "personal_reward/deviation"
    np.testing.assert_allclose(column[1], want.deviation, rtol=1e-6)
    later = personal.reward_function(model, asynchronous=True)
    plain = asyncio.run(later(prompts=["lunch"] * 2, completions=["tea", ""], completion_ids=[[1], [2]]))
    assert plain == [pytest.approx(model.score(None, "lunch", ["tea"])[0]), -5.0]
    units: dict[str, Any] = {"reference": [("a", "b"), ("a", "c")], "centre": True}
    with pytest.raises(UserError, match="centre and scale have no place there"):
        personal.reward_function(model, vector=True, **units)


# --- data sets ---

BLUE, GREEN = [{"role": "assistant", "content": "Blue."}], [{"role": "assistant", "content": "Green."}]
FORMS: list[dict[str, Any]] = [
    {"prompt": "Which colour?", "chosen": "Blue.", "rejected": "Green."},
    {"prompt": CHAT, "chosen": BLUE, "rejected": GREEN},
    {"chosen": CHAT + BLUE, "rejected": CHAT + GREEN},
    {"prompt": CHAT, "chosen": BLUE, "rejected": GREEN, "margin": 2.0},
    {"prompt": CHAT, "chosen": BLUE, "rejected": GREEN, "margin": 0.0},
]


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_trls_data_sets_are_read_as_they_are(tmp_path, form):
    row = FORMS[form]
    given: Any = datasets.Dataset.from_list([{**row, "user": "ada"}])
    given.save_to_disk(str(tmp_path / "set"))
    margin = row.get("margin") or None
    nobodys: Any = datasets.Dataset.from_list([row])
    for votes in (given, tmp_path / "set", personal.votes(nobodys, user="ada")):
        tables = read_votes(votes)
        assert sorted(one["text"] for one in tables.responses.to_pylist()) == ["Blue.", "Green."]
        (pair,) = tables.comparisons.to_pylist()
        assert tables.responses["text"][pair["chosen"]].as_py() == "Blue."
        assert pair["strength"] == margin
    with pytest.raises(UserError, match="field 'user': missing; name who preferred the answer"):
        read_votes(nobodys)


def test_texts_without_prompts_are_cut_on_request():
    texts = {"chosen": "The sky is blue.", "rejected": "The sky is black.", "user": "bo"}
    (row,) = personal.votes([texts], user="ada")
    assert row == {"user": "bo", "prompt": "The sky is", "chosen": " blue.", "rejected": " black."}
    assert trl.extract_prompt({**texts, "chosen": "The sky is red."})["prompt"] == row["prompt"]
    assert personal.votes([{"chosen": "yes", "rejected": "no"}]) == [{"chosen": "yes", "rejected": "no"}]


def test_votes_become_data_sets_of_trl(capsys):
    votes: list[dict[str, Any]] = [{**row, "user": "ada", "prompt": CHAT} for row in FORMS[1:2]]
    votes += [{"user": "bo", "prompt": "?", "chosen": "Yes.", "rejected": "No.", "strength": 3}]
    votes += [{"user": "bo", "prompt": "?", "responses": ["Yes.", "Well."], "outcome": "tie"}]
    found = personal.dataset(votes, margin=True)
    assert found.column_names == ["user", "prompt", "chosen", "rejected", "margin"]
    assert sorted(found["margin"]) == [0.0, 3.0]
    rows = {row["user"]: row for row in found}
    assert rows["ada"]["prompt"] == CHAT
    assert (rows["ada"]["chosen"], rows["ada"]["rejected"]) == (BLUE, GREEN)
    assert "1 votes are no preferences (tie, both_bad, skipped)" in capsys.readouterr().err
    assert read_votes(personal.dataset(votes)).num_users == 2
    asked = personal.prompts(votes)
    assert sorted((row["user"], row["prompt"][0]["content"]) for row in asked) == [("ada", "lunch"), ("bo", "?")]
    assert len(personal.prompts(votes, ["x", "y", "z"])) == 6
    with pytest.raises(UserError, match="no preference in these votes"):
        personal.dataset(votes, split="test")


def test_trls_reward_trainer_learns_from_them(tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = tastes.policy()[1]
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} <eos> {% endfor %}"
    sizes: Any = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32, "num_labels": 1}
    model = LlamaForSequenceClassification(LlamaConfig(**sizes, pad_token_id=0, eos_token_id=1, bos_token_id=None))
    found = personal.dataset([row for row in tastes.votes(each=20, copies=0) if row["user"] == "ada"], margin=True)
    how: dict[str, Any] = {"max_steps": 12, "learning_rate": 3e-2, "use_cpu": True, "bf16": False, "report_to": []}
    how |= {"save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "per_device_train_batch_size": 16}
    run = trl.RewardTrainer(
        model,
        args=trl.RewardConfig(output_dir=str(tmp_path), **how),
        train_dataset=found,
        processing_class=tokenizer,
    )
    run.train()
    accuracy = [entry["accuracy"] for entry in run.state.log_history if "accuracy" in entry]
    assert np.mean(accuracy[-4:]) > 0.8 > 0.7 > np.mean(accuracy[:1])
    assert math.isfinite(run.state.log_history[-2]["loss"])
