"""Studies of LoRe end to end on a reward model with a score head; each piece against what must come out."""

import dataclasses
import types
from typing import Any

import numpy as np
import pytest
import tiny
from scipy import optimize

from configs import jsonl, lore_personalllm, lore_prism
from experiments import linear, lore
from experiments.lore_methods import FITS, HEAD, LEARNED, METHOD, PUBLISHED, SHARED, SINGLE, Models, score_head
from experiments.runner.workspace import Workspace
from experiments.studies import lore_studies
from experiments.studies.lore_studies import StudiesConfig, draw
from experiments.studies.planted_world import PlantedConfig, World
from experiments.studies.planted_world import draw as draw_world
from lore_jax.fitting.bradley_terry import VARIANCE, LoReConfig
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.eval.reporting.results import read_results
from pref_jax.lm import checkpoint

QUICK: dict[str, Any] = {"ranks": (1,), "components": (3,), "variances": (3.0,), "shared_variances": (0.3, 3.0)}
QUICK |= {"line_search": "bisection"}


@pytest.fixture(scope="module")
def planted() -> World:
    sizes: Any = {"seen": 120, "unseen": 20, "tests": 30, "responses": 300, "features": 8, "directions": 3}
    return draw_world(PlantedConfig(**sizes, alpha=0.05, pairs=20, wrong=0.0), 2)


# --- per-user model ---


def own_direction(z: np.ndarray, strength: float) -> np.ndarray:
    """argmin sum softplus(-z w) + strength/2 |w|^2, in float64 by SciPy, in all features."""

    def objective(w):
        margin = z @ w
        gradient = strength * w - z.T @ (1 / (1 + np.exp(margin)))
        return np.logaddexp(0, -margin).sum() + strength / 2 * w @ w, gradient

    options = {"gtol": 1e-10, "ftol": 1e-15, "maxiter": 5000}
    return optimize.minimize(objective, np.zeros(z.shape[1]), jac=True, method="L-BFGS-B", options=options).x


def test_one_model_a_user_is_the_map_in_all_features():
    """Many votes, one, twice the same, none; more votes than features and fewer."""
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(60, 7)) * rng.uniform(0.1, 10, 7) + 5).astype(np.float32)
    votes = [(0, *rng.choice(60, 2, replace=False)) for _ in range(12)]
    votes += [(1, 3, 9), (2, 5, 6), (2, 5, 6), *((4, *rng.choice(60, 2, replace=False)) for _ in range(3))]
    train = Comparisons(*(np.array(column) for column in zip(*votes, strict=True)))
    validation = Comparisons(np.array([0, 1]), np.array([7, 8]), np.array([17, 18]))
    user = np.repeat(np.arange(6), 10)
    test = Comparisons(user, rng.integers(0, 30, 60), rng.integers(30, 60, 60))
    context = Comparisons(np.zeros(4, int), rng.integers(0, 30, 4), rng.integers(30, 60, 4))
    task = linear.Task(
        features=features, train=train, validation=validation, context=context, test=test, seen=np.arange(6) < 5
    )
    found = linear.margins(task, linear.single(task, variances=(2.0,)))
    assert found.dtype == np.float64
    rows = np.unique(np.concatenate(task.answers[1:3]))
    phi = features.astype(np.float64)
    phi = (phi - phi[rows].mean(0)) / phi[rows].std(0)
    every = linear.join(task.answers, context._replace(user=context.user + 5))
    for number in range(6):
        own = every.user == number
        direction = own_direction(phi[every.chosen[own]] - phi[every.rejected[own]], 7 / 2.0)
        asked = test.user == number
        want = (phi[test.chosen[asked]] - phi[test.rejected[asked]]) @ direction
        np.testing.assert_allclose(found[asked], want, atol=2e-4, rtol=2e-4)
    assert (found[test.user == 3] == 0).all()  # no votes, no opinion
    nothing = linear.single(dataclasses.replace(task, validation=Comparisons(*(np.zeros(0, int),) * 3)))
    assert nothing.facts["variance"] == VARIANCE  # with nothing to choose by


def test_its_variance_is_the_one_that_validation_votes_like_best(planted):
    facts = linear.single(planted).facts
    assert facts["variance"] in linear.OWN_VARIANCES
    alone = [linear.single(planted, variances=(v,)).facts["validation_log_loss"] for v in linear.OWN_VARIANCES]
    assert facts["validation_log_loss"] == pytest.approx(min(alone), rel=1e-6)


# --- methods on a task whose truth is known ---


@pytest.mark.slow
def test_lore_beats_one_reward_for_all_and_one_a_user_where_tastes_are_low_rank(planted):
    config = LoReConfig(**QUICK)
    models = {
        SHARED: linear.shared(planted, config),
        SINGLE: linear.single(planted),
        METHOD: linear.hierarchical(planted, config),
        "fixed": linear.hierarchical(planted, linear.fixed_rank(config, 3)),
    }
    right = {name: (linear.margins(planted, model) > 0).mean() for name, model in models.items()}
    assert right[METHOD] > right[SHARED] + 0.05
    assert right["fixed"] > right[SHARED] + 0.05
    assert right[METHOD] > right[SINGLE]
    assert models["fixed"].facts["rank"] == 3


def test_one_basis_reward_is_the_shared_reward(planted):
    config = LoReConfig(**QUICK)
    one = linear.margins(planted, linear.hierarchical(planted, linear.fixed_rank(config, 1)))
    np.testing.assert_allclose(one, linear.margins(planted, linear.shared(planted, config)), rtol=1e-3, atol=1e-4)


def test_an_anchored_recipe_takes_the_head_where_there_is_one(planted):
    config = linear.PublishedConfig(recipe="anchored", rank=2, steps=300)
    anchored, plain = (linear.published(task, config, 0) for task in (planted, dataclasses.replace(planted, head=None)))
    assert (anchored.facts["recipe"], plain.facts["recipe"]) == ("anchored", "reference")
    # Drawn to it with all strength, every user's reward is the head's.
    head = linear.margins(planted, linear.given(planted))
    assert np.corrcoef(linear.margins(planted, anchored), head)[0, 1] > 0.95
    with pytest.raises(UserError, match="no reward head"):
        linear.given(dataclasses.replace(planted, head=None))


# --- trials ---


class Alone:
    """In place of `Models`: one task, one model."""

    def __init__(self, task: linear.Task, model: linear.Model):
        self.task, self.model, self.work = task, model, types.SimpleNamespace(seed=5)
        self.truth = None, np.ones(len(task.test.user))  # the task has its test pairs as users answered

    def __call__(self, name: str) -> linear.Model:
        return self.model


def test_answers_are_drawn_without_repetition_from_each_user():
    user = np.array([2, 0, 0, 2, 2, 0, 2, 3])  # user 1 gave none
    votes = Comparisons(user, np.arange(8), np.arange(8) + 100)
    few, more = (draw(votes, shots=shots, trials=200, num_users=4, seed=1) for shots in (2, 3))
    assert np.bincount(few.user, minlength=800).reshape(200, 4).tolist() == [[2, 0, 2, 1]] * 200
    assert np.bincount(more.user, minlength=800).reshape(200, 4).tolist() == [[3, 0, 3, 1]] * 200
    for drawn in (few, more):
        assert len(set(zip(drawn.user, drawn.chosen, strict=True))) == len(drawn.user)
        np.testing.assert_array_equal(user[drawn.chosen], drawn.user % 4)
        np.testing.assert_array_equal(drawn.rejected, drawn.chosen + 100)
    assert set(zip(few.user, few.chosen, strict=True)) <= set(zip(more.user, more.chosen, strict=True))
    # Every answer of a user with four comes in about half of the trials.
    often = np.bincount(few.chosen[few.user % 4 == 2], minlength=8)[user == 2] / 200
    assert (abs(often - 0.5) < 0.15).all()
    assert len(draw(votes, shots=0, trials=3, num_users=4, seed=1).user) == 0


def test_trials_are_solved_together_as_one_by_one(planted):
    model = linear.single(planted)
    stub: Any = Alone(planted, model)
    found = lore_studies._trials(stub, SINGLE, 6, 4)
    drawn = draw(planted.context, shots=6, trials=4, num_users=planted.num_unseen, seed=5)
    asked = planted.test.take(planted.test.user >= planted.num_seen)
    every = []
    for trial in range(4):
        own = drawn.user // planted.num_unseen == trial
        context = Comparisons(drawn.user[own] % planted.num_unseen, drawn.chosen[own], drawn.rejected[own])
        every.append((model.predict(context, planted.num_unseen, asked) > 0).mean())
    accuracy = found["unseen/accuracy"]
    assert (accuracy.n, accuracy.over) == (4, "trials")
    assert accuracy.mean == pytest.approx(np.mean(every), abs=2e-3)
    more = lore_studies._trials(stub, SINGLE, 20, 4)["unseen/accuracy"]
    assert more.mean > accuracy.mean
    # All answers are the same answers in every trial.
    assert more.half_width == pytest.approx(0, abs=5e-3)


# --- end to end ---


def config_of(folder, module: Any = lore_personalllm) -> Any:
    config: Any = module.get_config("smoke")
    config.backbone.name = str(folder)
    config.backbone.max_length = 48
    return config


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    return tiny.reward_model(tmp_path_factory.mktemp("reward_model"))


@pytest.fixture(scope="module")
def finished(reward_model, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lore")
    lore.run(config_of(reward_model), workdir)
    return workdir


def rows_of(workdir, study: str) -> dict[str, set[str]]:
    return {
        path.parent.name: {row["method"] for row in read_results(path)["rows"]}
        for path in (workdir / "studies" / study).glob("*/results.json")
    }


def test_every_study_leaves_its_rows_tables_and_pictures(finished):
    rows = read_results(finished / "results.json")["rows"]
    every = {HEAD, SHARED, SINGLE, PUBLISHED, METHOD}
    assert {row["method"] for row in rows} == every
    for row in rows:
        assert {"seen/accuracy", "unseen/accuracy", "unseen/log_loss", "seen/calibration_error"} <= set(row["metrics"])
    assert rows_of(finished, "ranks") == {"1": {PUBLISHED, METHOD}, "2": {PUBLISHED, METHOD}}
    assert rows_of(finished, "shots") == {"1": set(LEARNED), "4": set(LEARNED)}
    assert rows_of(finished, "diversity") == {"0.01": every, "0.1": every}
    report = (finished / "report.md").read_text()
    for title in ("Seen and unseen users", "How many basis rewards", "How few answers", "How different the users"):
        assert f"## {title}" in report
    assert "K = 0, pretrained head" in report
    for name in ("ranks_seen", "ranks_unseen", "shots", "diversity_seen", "diversity_unseen"):
        assert f"plots/{name}.png" in report
        assert (finished / "plots" / f"{name}.png").stat().st_size > 5000


def test_the_reference_head_is_the_reward_models_own(finished, reward_model):
    run = Workspace(config_of(reward_model), 0, finished / "seed_0")
    models = Models(run)
    head = score_head(run)
    assert head is not None
    np.testing.assert_array_equal(head, checkpoint.tensor(reward_model, "score.weight")[0])
    pairs = models.data.pairs("test")
    reward = models.task.features.astype(np.float64) @ head
    np.testing.assert_allclose(run.scores(HEAD)[0], reward[pairs.chosen] - reward[pairs.rejected], atol=1e-5)
    run.config.backbone.layer = 1  # features that the head does not read
    assert score_head(run) is None


def test_a_world_of_its_own_differs_in_tastes_alone(finished, reward_model):
    run = Workspace(config_of(reward_model), 0, finished / "seed_0")
    worlds = [Models(lore_studies._world(run, alpha)) for alpha in (0.01, 0.1)]
    same, other = (one.data for one in worlds)
    assert other.meta["config"]["dirichlet_alpha"] == 0.1 != same.meta["config"]["dirichlet_alpha"]
    assert same.responses.equals(other.responses)
    np.testing.assert_array_equal(worlds[0].task.features, worlds[1].task.features)
    assert run.config.source.dirichlet_alpha == 0.1


def test_what_was_cut_off_goes_on_to_the_same_numbers(finished, reward_model, monkeypatch):
    lost = [finished / "studies" / place / "results.json" for place in ("ranks/2", "shots/4", "diversity/0.1")]
    kept = finished / "studies" / "ranks" / "1" / "results.json"
    before = {path: [row["metrics"] for row in read_results(path)["rows"]] for path in lost}
    whole, bytes_kept = read_results(finished / "results.json")["rows"], kept.read_bytes()
    for path in lost:
        path.unlink()
    ranks = []

    def watched(task, config, seed):
        ranks.append(config.rank)
        return linear_published(task, config, seed)

    linear_published = linear.published
    monkeypatch.setattr(linear, "published", watched)
    lore.run(config_of(reward_model), finished)
    assert ranks.count(1) == 0
    assert {path: [row["metrics"] for row in read_results(path)["rows"]] for path in lost} == before
    assert kept.read_bytes() == bytes_kept
    assert read_results(finished / "results.json")["rows"] == whole


# --- mistakes ---


def test_mistakes_are_told(tmp_path):
    config: Any = lore_personalllm.get_config("smoke")
    config.methods = ("CoPL",)
    with pytest.raises(UserError, match=f"names no method on features; add some of: {HEAD}"):
        lore.run(config, tmp_path)
    config = lore_personalllm.get_config("h200")
    config.studies.alphas = (0.1,)
    with pytest.raises(UserError, match=r"config\.source\.name is 'personalllm'; leave them out"):
        lore.run(config, tmp_path)
    bad: list[dict[str, Any]] = [{"ranks": (0,)}, {"shots": (-1,)}, {"trials": 0}, {"alphas": (0.0,)}]
    for wrong in bad:
        with pytest.raises(UserError, match=r"at least 1|above 0"):
            StudiesConfig(**{"ranks": (1,), "shots": (5,), "trials": 2, "alphas": (0.1,), **wrong})
    bad = [{"recipe": "anchor"}, {"rank": 0}, {"steps": -1}]
    for wrong in bad:
        with pytest.raises(UserError, match="recipe is reference or anchored"):
            linear.PublishedConfig(**wrong)
    config = lore_prism.get_config("smoke")
    config.studies.shot = (1,)
    with pytest.raises(UserError, match=r"config\.studies\.shot: unknown field; did you mean shots"):
        lore_studies.read(config)
    assert lore_studies.read(jsonl.get_config()) is None


def test_more_basis_rewards_than_features_are_told(finished, reward_model):
    models = Models(Workspace(config_of(reward_model), 0, finished / "seed_0"))
    with pytest.raises(UserError, match=r"config\.studies\.ranks: 17 basis rewards of 16 features"):
        lore_studies.run(
            models, list(FITS), StudiesConfig(ranks=(17,), shots=(), trials=1, alphas=()), finished / "other"
        )
