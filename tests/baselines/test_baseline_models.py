"""Every trained baseline as a model: fitted, saved, loaded equal to the bit, with users who come and go."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from pref_jax import personal
from pref_jax.baselines import model as heads
from pref_jax.baselines import p_rlhf, shared
from pref_jax.baselines.model import HeadConfig, HeadReward
from pref_jax.baselines.settings import BaselinesConfig
from pref_jax.baselines.shared import FitConfig
from pref_jax.data.votes import read_votes
from pref_jax.errors import UserError
from pref_jax.lm.lora import LoRAConfig
from pref_jax.lm.text_model import TextModel, open_text
from pref_jax.personal import PersonalReward
from pref_jax.train.method import TrainingConfig
from pref_jax.train.state import OptimizerConfig

WORDS = ("red", "green", "a long walk", "rain", "sun and rain", "no", "seven minutes", "it depends on the weather")
NAMES = [f"user {number}" for number in range(12)]
SIZES = BaselinesConfig(context=4, hidden=8, embedding=3, blocks=1, soft_tokens=2, batch_size=16, steps=(6,))
QUICK = TrainingConfig(optimizer=OptimizerConfig(lr=3e-3, num_steps=4), batch_size=8)
TUNED = FitConfig(lora=LoRAConfig(rank=2), training=QUICK)
HEADS = ("I2E", "VPL", "PAL-A", "PAL-B", "GPO")
CASES = ["shared", "P-RLHF", *HEADS, *(f"{name} on the transformer" for name in HEADS)]
PROMPT, TEXTS = "How long?", ["Seven minutes.", "It depends.", "Rain"]


def _votes(users: Any, each: int, *, seed: int = 0) -> list[dict[str, str]]:
    rng, rows = np.random.default_rng(seed), []
    for user in users:
        for place in range(each):
            chosen, rejected = rng.choice(len(WORDS), 2, replace=False)
            pair = {"chosen": WORDS[chosen], "rejected": WORDS[rejected]}
            rows.append({"user": user, "prompt": f"What of {place}?", **pair})
    return rows


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> TextModel:
    folder = tiny.reward_model(tmp_path_factory.mktemp("base") / "decoder")
    return open_text(str(folder), max_length=48, batch_size=16)


def _fit(case: str, text: TextModel, workdir: Path | None = None) -> PersonalReward:
    votes = read_votes(_votes(NAMES, 6), unseen_fraction=1 / 6, seed=1)
    if case == "shared":
        return shared.fit(votes, text=text, config=TUNED, workdir=workdir)
    if case == "P-RLHF":
        return p_rlhf.fit(votes, text=text, config=TUNED, sizes=SIZES, workdir=workdir)
    method = case.removesuffix(" on the transformer")
    on = {"transformer": TUNED} if case != method else {}
    return heads.fit(votes, text=text, config=HeadConfig(method=method, sizes=SIZES, **on), workdir=workdir)


def _scores(model: PersonalReward, user: str | None) -> np.ndarray:
    return np.asarray(model.score(user, PROMPT, TEXTS))


@pytest.mark.parametrize("case", CASES)
def test_a_baseline_is_saved_loaded_and_learns_and_forgets_users(case, text, tmp_path):
    fitted, alike = _fit(case, text), case in ("shared", "P-RLHF")
    assert sorted(fitted.users) == sorted(NAMES)
    before = _scores(fitted, NAMES[0])
    assert before.dtype == np.float32
    assert np.isfinite(before).all()
    if case != "shared":
        assert np.unique([_scores(fitted, name) for name in NAMES], axis=0).shape[0] > 2, "users differ"
    mixed = fitted.score([NAMES[0], None, NAMES[3]], [PROMPT] * 3, [TEXTS[0]] * 3)
    alone = [_scores(fitted, user)[0] for user in (NAMES[0], None, NAMES[3])]
    np.testing.assert_array_equal(mixed, alone, "rewards depend on their company")

    for some, count in ((_votes(["new"], 1), 1), (_votes(["new"], 6, seed=3), 7)):
        earlier = _scores(fitted, "new") if "new" in fitted.users else _scores(fitted, None)
        assert fitted.add_votes("new", some)[:2] == ("new", count)
        assert (_scores(fitted, "new") == earlier).all() == alike
    np.testing.assert_array_equal(_scores(fitted, NAMES[0]), before)

    again = type(fitted).restore(personal.read(fitted.save(tmp_path / "saved"), text=text))
    assert again.users == fitted.users
    assert again.state()[2] == fitted.state()[2]
    for user in (None, "new", *NAMES):
        np.testing.assert_array_equal(_scores(again, user), _scores(fitted, user))

    again.remove_user(NAMES[0])
    again.remove_user("new")
    for user in (NAMES[0], "new", "stranger"):
        with pytest.raises(UserError, match=f"'{user}' is not known"):
            again.score(user, PROMPT, TEXTS)
        with pytest.raises(UserError, match=f"'{user}' is not known"):
            again.remove_user(user)
    assert NAMES[0].encode() not in (again.save(tmp_path / "less") / "users.parquet").read_bytes()
    np.testing.assert_array_equal(_scores(again, NAMES[1]), _scores(fitted, NAMES[1]))
    with pytest.raises(UserError, match="no posterior"):
        again.score(NAMES[1], PROMPT, TEXTS, uncertainty=True)


def test_a_workdir_gives_the_same_baseline_and_refuses_another(text, tmp_path):
    first = _fit("VPL", text, tmp_path)
    np.testing.assert_array_equal(_scores(_fit("VPL", text, tmp_path), NAMES[2]), _scores(first, NAMES[2]))
    with pytest.raises(UserError, match="holds a fit of other votes or settings"):
        _fit("GPO", text, tmp_path)
    with pytest.raises(UserError, match=r"HeadConfig\.method is 'vpl'; give one of I2E"):
        HeadConfig(method="vpl")


def test_users_of_i2e_are_found_again_without_a_removed_one(text):
    fitted = _fit("I2E", text)
    assert isinstance(fitted, HeadReward)
    fitted.add_votes("new", _votes(["new"], 3))
    before = _scores(fitted, "new")
    (trained,) = [name for name, member in fitted._members.items() if member.trained][:1]
    fitted.remove_user(trained)
    assert np.abs(_scores(fitted, "new") - before).max() > 0
    left = [name for name, member in fitted._members.items() if member.trained]
    for name in left[1:]:
        fitted.remove_user(name)
    with pytest.raises(UserError, match="last user met in training"):
        fitted.remove_user(left[0])
