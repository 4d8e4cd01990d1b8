"""LoRe as a model: users' votes on the basis, their weights, uncertainty, forgetting and folders, on features."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import lore_jax
import pref_jax
from lore_jax import fitted
from lore_jax.fitted import LoRe, basis_rewards
from lore_jax.fitting import model_selection
from lore_jax.fitting.bradley_terry import Fit, LoReConfig
from lore_jax.fitting.gaussian_mixture import Clusters
from lore_jax.user_votes import UserVotes
from pref_jax.comparisons import Comparisons
from pref_jax.errors import UserError
from pref_jax.standardiser import Standardiser

D, K = 6, 3
KINDS = ("shared", "gaussian", "mixture", "simplex", "clusters")
SOLVED = KINDS[1:]
QUICK = LoReConfig.quick(ranks=(2,), components=(), variances=(3.0,), shared_variances=(1.0,), steps=30)


def made(kind: str) -> Fit:
    """A fit of random numbers, as of some kind."""
    rng = np.random.default_rng(3)
    size = 1 if kind == "shared" else K

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    mean = jnp.asarray([0.5, 0.3, 0.2][:size]) if kind in ("mixture", "simplex") else jnp.ones(size)
    root = draw(size, size)
    precision = root @ root.T + jnp.eye(size)
    clusters = Clusters(jnp.log(jnp.asarray([0.7, 0.3])), draw(2, size), jnp.stack([precision, jnp.eye(size)]))
    standardiser = Standardiser(draw(D), jnp.exp(draw(D)))
    basis, weights = draw(D, size), jnp.broadcast_to(mean[None], (2, size))
    chosen = {"kind": kind, "rank": size, "log_loss": 0.5}
    own = clusters if kind == "clusters" else None
    return Fit(kind, standardiser, basis, weights, mean, precision, jnp.zeros(0), chosen, (chosen,), own)


def model_of(kind: str) -> LoRe:
    """Two users, of one and of two votes."""
    found = made(kind)
    z = np.random.default_rng(4).normal(size=(3, found.basis.shape[1])).astype(np.float32)
    facts = {"chosen": found.chosen, "candidates": list(found.candidates), "validation_votes": 4, "config": {}}
    return LoRe(fit=found, users=["ada-lovelace", "bo"], z=z, counts=np.array([1, 2]), facts=facts)


def responses(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, D)).astype(np.float32)


def scored(model: LoRe, user: str | None, x: np.ndarray) -> bytes:
    return model.score(user, None, x).tobytes()


def test_votes_are_laid_out_as_if_they_had_come_together():
    rng = np.random.default_rng(0)
    kept: list[np.ndarray] = [rng.normal(size=(n, 2)).astype(np.float32) for n in (2, 0, 3)]
    votes = UserVotes(np.concatenate(kept), np.array([2, 0, 3]))
    for step in range(30):
        user = int(rng.integers(len(kept) + 1))
        if step % 7 == 6 and user < len(kept):
            votes.remove(user)
            del kept[user]
        else:
            more = rng.normal(size=(int(rng.integers(1, 4)), 2)).astype(np.float32)
            own = np.concatenate([votes.of(user), more])
            kept[user : user + 1] = [own]
            votes.replace({user: own})
        if step % 3 == 0:
            z, counts = votes.flat()
            np.testing.assert_array_equal(z, np.concatenate(kept))
            assert counts.tolist() == [len(own) for own in kept]
        for number, own in enumerate(kept):
            np.testing.assert_array_equal(votes.of(number), own)
    assert len(votes.of(-1)) == len(votes.of(len(kept))) == 0


@pytest.mark.parametrize("kind", SOLVED)
def test_weights_are_those_of_all_votes_at_once(kind):
    x, parts, whole = responses(40), model_of(kind), model_of(kind)
    for start, stop in ((0, 1), (1, 3), (3, 20)):
        added = parts.add_votes("cy", (x[start:stop], x[20 + start : 20 + stop]))
    whole.add_votes("cy", (x[:20], x[20:]))
    assert added == ("cy", 20, "weights solved")
    assert scored(parts, "cy", x) == scored(whole, "cy", x)
    context = Comparisons(np.zeros(20, int), np.arange(20), np.arange(20, 40))
    weights = np.asarray(model_selection.adapt(made(kind), x, context, 1))
    want = basis_rewards(made(kind), x) @ weights[0]
    np.testing.assert_allclose(whole.score("cy", None, x), want, rtol=1e-4, atol=1e-4)
    # The votes tell something, so the check is not one of the prior with itself.
    assert np.abs(want - whole.score(None, None, x)).max() > 0.1


def test_known_users_are_solved_from_their_earlier_votes_too():
    x, model = responses(4), model_of("gaussian")
    before = model._votes.of(1)
    assert model.add_votes("bo", (x[:2], x[2:])).votes == 4
    z = basis_rewards(made("gaussian"), x)
    both = np.concatenate([before, (z[:2] - z[2:]).astype(np.float32)])
    np.testing.assert_array_equal(model._votes.of(1), both)
    other = model_of("gaussian")
    other._learn(["new"] * 4, both)
    assert scored(model, "bo", x) == scored(other, "new", x)
    assert scored(model, "ada-lovelace", x) == scored(model_of("gaussian"), "ada-lovelace", x)


def test_many_users_are_solved_as_one_is_and_by_few_programs():
    rng = np.random.default_rng(5)
    z = rng.normal(size=(300, K)).astype(np.float32)
    users = [f"u{n}" for n in rng.integers(0, 40, 300)]
    together, single = model_of("gaussian"), model_of("gaussian")
    program: Any = fitted._weights_program
    program.clear_cache()
    assert sorted(user for user, *_ in together._learn(users, z)) == sorted(set(users))
    assert program._cache_size() <= 2
    for user in dict.fromkeys(users):
        rows = [place for place, name in enumerate(users) if name == user]
        single._learn([user] * len(rows), z[rows])
    programs = program._cache_size()
    x = responses(3)
    for user in single.users:
        np.testing.assert_allclose(together.score(user, None, x), single.score(user, None, x), rtol=1e-4, atol=1e-4)
    single._learn(["another"] * 3, z[:3])
    assert program._cache_size() == programs, "a user more compiles nothing"


def test_scores_do_not_depend_on_neighbours():
    x, model = responses(1000), model_of("clusters")
    model.add_votes("cy", (x[:9], x[9:18]))
    users = (["cy", "bo", None, "ada-lovelace"] * 250)[:1000]
    together = model.score(users, [""] * 1000, x)
    for place in (0, 1, 2, 3, 998, 999):
        assert together[place] == model.score(users[place], "", x[place : place + 1])[0]
    assert model.rank("cy", "", x[:5]) == np.argsort(-model.score("cy", "", x[:5]), kind="stable").tolist()


# --- uncertainty ---


def test_uncertainty_of_a_gaussian_is_laplace():
    x, model, fit = responses(12), model_of("gaussian"), made("gaussian")
    model.add_votes("cy", (x[:5], x[5:10]))
    z = basis_rewards(fit, x).astype(np.float64)
    difference, precision = z[:5] - z[5:10], np.asarray(fit.precision, np.float64)
    weights = np.ones(K)
    for _ in range(300):
        share = 1 / (1 + np.exp(difference @ weights))
        slope = precision @ (weights - np.asarray(fit.mean)) - difference.T @ share
        hessian = precision + (difference * (share * (1 - share))[:, None]).T @ difference
        weights = weights - 0.1 * np.linalg.solve(hessian, slope)
    want = np.sqrt(np.einsum("nk,kl,nl->n", z, np.linalg.inv(hessian), z))
    found = model.score("cy", None, x, uncertainty=True)
    np.testing.assert_allclose(found.mean, z @ weights, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.deviation, want, rtol=1e-3)
    nobody = model.score(None, None, x, uncertainty=True)
    np.testing.assert_allclose(
        nobody.deviation, np.sqrt(np.einsum("nk,kl,nl->n", z, np.linalg.inv(precision), z)), rtol=1e-3
    )
    assert (found.deviation < nobody.deviation).all()


def test_uncertainty_of_the_other_kinds():
    x = responses(7)
    assert not model_of("shared").score("bo", None, x, uncertainty=True).deviation.any()
    mixture, fit = model_of("mixture"), made("mixture")
    z, weights = basis_rewards(fit, x), np.asarray(fit.mean, np.float64)
    want = np.sqrt((z**2) @ weights - (z @ weights) ** 2)
    np.testing.assert_allclose(mixture.score(None, None, x, uncertainty=True).deviation, want, rtol=1e-5)
    clusters = model_of("clusters").score(["bo", None] * 3 + ["bo"], [""] * 7, x, uncertainty=True)
    assert (clusters.deviation > 0).all()
    with pytest.raises(UserError, match="kind simplex has no posterior"):
        model_of("simplex").score("bo", None, x, uncertainty=True)


# --- folders, and what is forgotten ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_reloaded_model_is_the_same_to_the_bit(tmp_path, kind):
    x, model = responses(20), model_of(kind)
    model.add_votes("cy", (x[:3], x[3:6]))
    again = lore_jax.load(model.save(tmp_path / "m"))
    assert isinstance(pref_jax.load(tmp_path / "m"), LoRe)
    assert again.users == model.users
    assert repr(again) == repr(model)
    for user in (None, *model.users):
        assert scored(again, user, x) == scored(model, user, x)
    more = (x[6:9], x[9:12])
    assert again.add_votes("cy", more) == model.add_votes("cy", more)
    assert scored(again, "cy", x) == scored(model, "cy", x)


def test_nothing_of_a_removed_user_is_left(tmp_path):
    x, model, name = responses(10), model_of("gaussian"), b"ada-lovelace"
    model.add_votes("ada-lovelace", (x[:3], x[3:6]))
    own, others = model._votes.of(0).tobytes(), {user: scored(model, user, x) for user in ("bo", None)}
    model.save(tmp_path / "m")

    def files() -> bytes:
        return b"".join(file.read_bytes() for file in sorted((tmp_path / "m").iterdir()))

    assert name in files()
    assert own in files()
    model.remove_user("ada-lovelace")
    model.save(tmp_path / "m")
    assert name not in files()
    assert own not in files()
    assert model.users == ["bo"]
    assert {user: scored(model, user, x) for user in ("bo", None)} == others
    with pytest.raises(UserError, match="user 'ada-lovelace' is not known"):
        model.remove_user("ada-lovelace")
    # Who comes again starts over.
    fresh = model_of("gaussian")
    fresh.add_votes("cy", (x[6:8], x[8:]))
    model.add_votes("ada-lovelace", (x[6:8], x[8:]))
    assert scored(model, "ada-lovelace", x) == scored(fresh, "cy", x)


def test_a_model_without_users_is_still_one(tmp_path):
    model = model_of("gaussian")
    for user in list(model.users):
        model.remove_user(user)
    again = lore_jax.load(model.save(tmp_path / "m"))
    assert again.users == []
    assert scored(again, None, responses(2)) == scored(model, None, responses(2))


# --- fitting ---


def world(users: int = 12, votes: int = 14, seed: int = 0) -> tuple[np.ndarray, Comparisons]:
    """Two groups of users with opposite tastes."""
    rng = np.random.default_rng(seed)
    x, user = responses(80, seed), np.repeat(np.arange(users), votes)
    chosen, rejected = rng.integers(0, 40, len(user)), rng.integers(40, 80, len(user))
    taste = np.where(np.arange(users) % 2, 1, -1)[:, None] * np.eye(D)[0] * 3
    swap = np.einsum("pd,pd->p", x[chosen] - x[rejected], taste[user]) < 0
    return x, Comparisons(user, np.where(swap, rejected, chosen), np.where(swap, chosen, rejected))


def test_fit_on_features_holds_out_its_own_votes_and_tells():
    x, votes = world()
    names = np.array([f"u{user:02d}" for user in votes.user])
    model = lore_jax.fit(x, votes._replace(user=names), config=QUICK)
    assert model.users == [f"u{user:02d}" for user in range(12)]
    assert model.facts["validation_votes"] == round(0.1 * len(names))
    told = repr(model)
    assert "gaussian, rank 3, 12 users, 6 features" in told
    assert "gain over the shared reward in validation log-loss +" in told
    assert "standard error 0." in told
    chosen, rejected = (model.score(list(names), [""] * len(names), x[side]) for side in votes[1:3])
    assert np.mean(chosen > rejected) > 0.9
    assert model._votes.flat()[1].tolist() == [14] * 12
    numbers = lore_jax.fit(x, votes, user_ids=sorted(set(names)), config=QUICK)
    assert scored(numbers, "u03", x) == scored(model, "u03", x)


def test_fit_with_little_or_nothing_to_go_by(capsys):
    x = responses(6)
    one = lore_jax.fit(x, Comparisons(np.array(["ada"]), np.array([1]), np.array([2])))
    assert "no vote could be held out, so the shared reward is taken" in repr(one)
    assert "shared reward is fitted" in capsys.readouterr().err
    assert one.score("ada", None, x[1:2])[0] > one.score("ada", None, x[2:3])[0]
    one.add_votes("bo", (x[:1], x[3:4]))
    same = lore_jax.fit(np.ones((4, 3)), Comparisons(np.array([0, 0, 1]), np.array([1, 2, 3]), np.array([2, 3, 0])))
    assert not same.score("1", None, np.ones((2, 3))).any()


def test_mistakes_are_told():
    x, votes = world()
    model = model_of("gaussian")
    for call, message in (
        (lambda: lore_jax.fit(x, votes, base="somewhere"), "features take no base"),
        (lambda: lore_jax.fit([]), "give base= with text options"),
        (lambda: lore_jax.fit("a.jsonl", base="x", wrong=1), "unknown options wrong"),
        (lambda: lore_jax.fit(x, votes._replace(chosen=votes.chosen + 1000)), "chosen of row 0"),
        (lambda: lore_jax.fit(x, votes, user_ids=["a"] * 12), "some stand twice"),
        (lambda: model.score("eve", None, x), "user 'eve' is not known"),
        (lambda: model.score("bo", None, x[:, :2]), r"give finite numbers, \[N, 6\]"),
        (lambda: model.add_votes("bo", (x[:2] * np.nan, x[:2])), "give finite numbers"),
        (lambda: model.add_votes("bo", (x[:2], x[:3])), "give a pair of arrays"),
        (lambda: model.add_votes(" ", (x[:2], x[2:4])), "user: is ' '"),
        (lambda: model.export("out"), "knows no transformer"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert model.users == ["ada-lovelace", "bo"]
