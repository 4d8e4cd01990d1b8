"""CoPL as a model: fitted on a small file of votes; new users, folders, forgetting, a killed or finished workdir."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny

import copl_jax
import pref_jax
from copl_jax import model as front_door
from copl_jax.fitted import CoPL, digests
from copl_jax.graph.cold_start import cold_start
from copl_jax.graph.settings import fast_config, linear_config
from copl_jax.graph.solved_users import solve_users
from copl_jax.graph.training import normalised
from copl_jax.reward import training
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.routing import GateConfig
from copl_jax.reward.training import RewardSettings
from pref_jax.baselines import shared as shared_reward
from pref_jax.comparisons import concatenate
from pref_jax.data.preferences import build
from pref_jax.data.votes import vote_rows
from pref_jax.errors import UserError
from pref_jax.lm.text_model import TextModel, open_text
from pref_jax.personal import Saved
from pref_jax.train.method import TrainingConfig
from pref_jax.train.state import OptimizerConfig

CONFIG = copl_jax.CoPLConfig(
    graph=fast_config(dim=8, num_layers=2, epochs=10),
    reward=RewardSettings(
        training=TrainingConfig(optimizer=OptimizerConfig(lr=1e-2, num_steps=6), batch_size=8, checkpoint_every=2),
        experts=ExpertsConfig(num_experts=3, rank=2),
        gate=GateConfig(hidden=8),
    ),
)
PROMPT, CANDIDATES = "Question 1?", ["Short.", "A long answer, which goes on.", "Something else."]


def vote(number: int, likes_short: bool) -> dict[str, str]:
    texts = (f"Short {number}.", f"A long answer to {number}, which goes on.")
    return {"prompt": f"Question {number}?", "chosen": texts[not likes_short], "rejected": texts[likes_short]}


def rows(users: int = 6, votes: int = 8) -> list[dict[str, str]]:
    """Every other user likes short answers, the others long ones."""
    names = ["ada-lovelace", *(f"u{n}" for n in range(1, users))]
    rng = np.random.default_rng(0)
    return [
        {"user": name, **vote(int(number), place % 2 == 0)}
        for place, name in enumerate(names)
        for number in rng.permutation(12)[:votes]
    ]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> TextModel:
    return open_text(str(tiny.reward_model(tmp_path_factory.mktemp("base"))), batch_size=8)


@pytest.fixture(scope="module")
def workdir(text, tmp_path_factory) -> Path:
    """The folder of a finished fit of a file of votes."""
    folder = tmp_path_factory.mktemp("fit")
    (folder / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    copl_jax.fit(folder / "votes.jsonl", text=text, config=CONFIG, workdir=folder / "work")
    return folder


LINEAR = dataclasses.replace(CONFIG, graph=linear_config(dim=8, epochs=20, priors=(3.0, 1.0), nodes="table"))


@pytest.fixture(scope="module")
def linear_workdir(text, tmp_path_factory) -> Path:
    """The folder of a finished fit with the default layer."""
    folder = tmp_path_factory.mktemp("linear")
    copl_jax.fit(rows(), text=text, config=LINEAR, workdir=folder)
    return folder


@pytest.fixture
def linear(linear_workdir, text) -> CoPL:
    return copl_jax.fit(rows(), text=text, config=LINEAR, workdir=linear_workdir)


@pytest.fixture
def model(workdir, text) -> CoPL:
    """The fitted model, again for every test, which may change it."""
    return CoPL.restore(pref_jax.personal.read(workdir / "work" / "model", text=text))


def scored(model: CoPL, user: str | None) -> bytes:
    return np.asarray(model.score(user, PROMPT, CANDIDATES)).tobytes()


def test_a_fit_scores_and_ranks_for_each_user(model):
    assert model.users == sorted({row["user"] for row in rows()}, key=model.users.index)
    found = {user: np.asarray(model.score(user, PROMPT, CANDIDATES)) for user in (None, *model.users)}
    assert all(value.dtype == np.float32 and value.shape == (3,) for value in found.values())
    assert len({value.tobytes() for value in found.values()}) == len(found), "each user has a reward of their own"
    for user, value in found.items():
        assert model.rank(user, PROMPT, CANDIDATES) == np.argsort(-value, kind="stable").tolist()
    told = repr(model)
    assert f"{len(found) - 1} users ({len(found) - 1} in the graph), 24 responses" in told
    assert "3 experts of rank 2 on q_proj, v_proj, top 1; embeddings of 8 features" in told


def test_scores_do_not_depend_on_neighbours_users_or_order(model):
    who = [None, *model.users]
    users, texts = [who[n % len(who)] for n in range(21)], [CANDIDATES[n % 3] * (1 + n % 4) for n in range(21)]
    together = np.asarray(model.score(users, [PROMPT] * 21, texts))
    for place in range(21):
        assert together[place] == model.score(users[place], PROMPT, [texts[place]])[0]
    turned = np.asarray(model.score(users[::-1], [PROMPT] * 21, texts[::-1]))
    np.testing.assert_array_equal(turned[::-1], together)


# --- new users ---


def test_a_new_user_is_embedded_by_who_chose_the_same(model):
    own = [vote(number, likes_short=True) for number in (1, 2, 3)]
    added = model.add_votes("bo", own)
    known = model.known
    chosen, rejected = np.array(
        [
            [digest.tobytes() for digest in known.digests].index(digest.tobytes())
            for digest in digests(vote_rows(own, "bo").responses)
        ]
    ).reshape(2, -1)
    row = len(known.ids) - 1
    pairs = known.pairs.take(known.pairs.user < row)
    neighbours = np.unique(pairs.user[np.isin(pairs.chosen, chosen)])
    assert added == ("bo", 3, f"embedded from 3 votes and {len(neighbours)} users who chose the same")
    assert set(neighbours) <= {0, 2, 4} or len(neighbours)
    # The softmax of the paper, in float64.
    difference = (known.responses[chosen] - known.responses[rejected]).astype(np.float64)
    logits = -np.logaddexp(0, -(known.users[neighbours] @ difference.T)).mean(1) / 0.07
    weights = np.exp(logits - logits.max())
    want = weights @ known.users[neighbours] / weights.sum()
    np.testing.assert_allclose(known.users[row], want, rtol=1e-4, atol=1e-5)
    assert not known.graph[row]
    assert scored(model, "bo") != scored(model, None)


def test_votes_in_parts_are_votes_at_once_and_leave_others_alone(model, workdir, text):
    own = [vote(number, likes_short=False) for number in range(6)]
    before = {user: scored(model, user) for user in (None, *model.users)}
    for some in (own[:1], own[1:4], own[4:]):
        model.add_votes("bo", some)
    whole = CoPL.restore(pref_jax.personal.read(workdir / "work" / "model", text=text))
    assert whole.add_votes("bo", own).votes == 6
    assert scored(model, "bo") == scored(whole, "bo")
    assert {user: scored(model, user) for user in before} == before


def test_more_votes_of_a_user_of_the_graph_move_their_embedding(model):
    before = model.known.users[0].copy()
    count = int((model.known.pairs.user == 0).sum())
    added = model.add_votes("ada-lovelace", [vote(number, likes_short=False) for number in range(12)])
    assert added.votes == count + 12
    assert np.abs(model.known.users[0] - before).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(model.known.users[0]), 1, rtol=1e-5)
    assert model.known.graph.all()


def test_unknown_responses_are_told_and_teach_nothing(model):
    strange = [{"prompt": "New?", "chosen": "Yes.", "rejected": "No."}] * 2
    added = model.add_votes("bo", strange)
    assert added.votes == 0
    assert "2 votes are on responses that training never saw and taught nothing" in added.how
    np.testing.assert_allclose(model.known.users[-1], model.known.users[:-1].mean(0), rtol=1e-5, atol=1e-6)
    added = model.add_votes("bo", [*strange[:1], vote(2, likes_short=True)])
    assert added.votes == 1
    assert added.how.startswith("embedded from 1 votes and ")
    assert added.how.endswith("; 1 votes are on responses that training never saw and taught nothing")
    before = scored(model, "ada-lovelace")
    assert "taught nothing" in model.add_votes("ada-lovelace", strange).how
    assert scored(model, "ada-lovelace") == before


def test_where_nobody_shares_a_choice_all_users_of_the_graph_are_asked(model):
    known = model.known
    responses = [{"prompt": "Question 3?", "chosen": "Nobody chose this.", "rejected": "Nor this."}]
    digest = digests(vote_rows(responses, "bo").responses)
    # As if training had known two responses that nobody chose.
    model.known = known._replace(
        responses=np.concatenate([known.responses, known.responses[:2] + 1]),
        digests=np.concatenate([known.digests, digest]),
    )
    model._response |= {key.tobytes(): len(known.digests) + place for place, key in enumerate(digest)}
    added = model.add_votes("bo", responses)
    assert added.how == "no one in the graph chose the same: embedded from 1 votes and all its users"
    found = cold_start(
        users=model.known.users,
        responses=model.known.responses,
        seen=model.known.graph,
        train_pairs=known.pairs,
        context=model.known.pairs.take(model.known.pairs.user == len(known.ids)),
        unseen=np.array([len(known.ids)]),
    )
    assert found.used_all_users.all()
    np.testing.assert_array_equal(model.known.users[-1], found.embeddings[0])


def test_more_users_compile_nothing_again(model):
    model.add_votes("first", [vote(1, likes_short=True)])
    scored(model, "first")
    program: Any = training.table_rewards
    programs = program._cache_size()
    for number in range(12):
        model.add_votes(f"new-{number}", [vote(number, likes_short=True)])
        scored(model, f"new-{number}")
    assert program._cache_size() == programs


# --- folders, and what is forgotten ---


def test_a_reloaded_model_is_the_same_to_the_bit(model, text, tmp_path):
    model.add_votes("bo", [vote(number, likes_short=True) for number in range(3)])
    model.save(tmp_path / "m")
    again = copl_jax.load(tmp_path / "m")
    assert isinstance(pref_jax.load(tmp_path / "m"), CoPL)
    assert again.users == model.users
    assert repr(again) == repr(model)
    for user in (None, *model.users):
        assert scored(again, user) == scored(model, user)
    more = [vote(number, likes_short=False) for number in range(5)]
    for user in ("bo", "u3", "cy"):
        assert again.add_votes(user, more) == model.add_votes(user, more)
        assert scored(again, user) == scored(model, user)


def test_users_of_the_linear_layer_are_solved_also_after_reloading(linear, tmp_path):
    assert linear.known.table is not None
    added = linear.add_votes("bo", [vote(number, likes_short=True) for number in range(3)])
    assert added.how == "embedded from 3 votes"
    own = linear.known.pairs.take(linear.known.pairs.user == 6)
    solved = normalised(solve_users(linear.known.table, own, np.array([6]), scale=linear.scale))
    np.testing.assert_array_equal(linear.known.users[6], solved[0])
    strange = [{"prompt": "Question 99?", "chosen": "Never seen.", "rejected": "Nor this."}]
    assert linear.add_votes("nobody", strange).how.startswith(
        "no votes yet: the mean of the graph's users; 1 votes are"
    )
    np.testing.assert_allclose(linear.known.users[7], linear.known.users[:6].mean(axis=0), rtol=1e-5, atol=1e-6)
    linear.save(tmp_path / "m")
    again = copl_jax.load(tmp_path / "m")
    for user in (None, *linear.users):
        assert scored(again, user) == scored(linear, user)
    more = [vote(number, likes_short=False) for number in range(5)]
    for user in ("bo", "u3", "cy"):
        assert again.add_votes(user, more) == linear.add_votes(user, more)
        assert scored(again, user) == scored(linear, user)


def test_a_folder_that_lacks_columns_is_told(linear, tmp_path):
    _, tensors, votes = linear.state()
    with pytest.raises(UserError, match="lacks tie, messages; it is damaged or of another version"):
        CoPL.restore(
            Saved(
                folder=tmp_path / "m",
                text=linear.text,
                users=linear.users,
                tensors={name: leaf for name, leaf in tensors.items() if name not in ("tie", "messages")},
                model=linear.state()[0],
                votes=np.array(votes),
            )
        )


def test_nothing_of_a_removed_user_is_left(model, tmp_path):
    def files() -> bytes:
        return b"".join(file.read_bytes() for file in sorted((tmp_path / "m").iterdir()))

    own, name = model.known.users[0].tobytes(), b"ada-lovelace"
    others = {user: scored(model, user) for user in model.users[1:]}
    pairs = [part[model.known.pairs.user > 0] for part in model.known.pairs[1:3]]
    model.save(tmp_path / "m")
    assert name in files()
    assert own in files()
    model.remove_user("ada-lovelace")
    model.save(tmp_path / "m")
    assert name not in files()
    assert own not in files()
    again = copl_jax.load(tmp_path / "m")
    assert again.users == model.users == list(others)
    for kept, wanted in zip(again.known.pairs[1:3], pairs, strict=True):
        np.testing.assert_array_equal(kept, wanted)
    assert {user: scored(again, user) for user in others} == others
    with pytest.raises(UserError, match="user 'ada-lovelace' is not known"):
        model.remove_user("ada-lovelace")
    for user in model.users[1:]:
        model.remove_user(user)
    with pytest.raises(UserError, match="is the last user of the graph"):
        model.remove_user(model.users[0])


def test_a_workdir_returns_what_it_has_resumes_and_refuses_other_votes(workdir, text, model, tmp_path, monkeypatch):
    votes, how = workdir / "votes.jsonl", {"text": text, "config": CONFIG}
    copied = Path(shutil.copytree(workdir / "work", tmp_path / "copy"))
    with monkeypatch.context() as patch:
        patch.setattr(front_door, "_fit", None)
        again = copl_jax.fit(votes, workdir=copied, **how)
        for changed in ({"seed": 1}, {"config": copl_jax.CoPLConfig(graph=fast_config(dim=4), reward=CONFIG.reward)}):
            with pytest.raises(UserError, match="holds a fit of other votes or settings; name another workdir"):
                copl_jax.fit(votes, workdir=copied, **{**how, **changed})
        with pytest.raises(UserError, match="holds a fit of other votes or settings; name another workdir"):
            copl_jax.fit(rows()[1:], workdir=copied, **how)
    wanted = {user: scored(model, user) for user in (None, *model.users)}
    assert {user: scored(again, user) for user in wanted} == wanted
    # As a kill in the middle of the experts' training leaves it.
    shutil.rmtree(copied / "model")
    steps = sorted(copied.glob("reward/checkpoints/*"), key=lambda path: path.name)
    assert len(steps) > 1
    shutil.rmtree(steps[-1])
    resumed = copl_jax.fit(votes, workdir=copied, **how)
    assert resumed.facts["was_resumed"]
    assert {user: scored(resumed, user) for user in wanted} == wanted


def test_one_users_export_is_an_adapter(model, tmp_path):
    model.export(tmp_path / "out", user="u1")
    config: dict[str, Any] = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == model.base.name
    linears = {name.rsplit(".", 1)[1] for name in config["target_modules"]}
    assert (config["r"], linears) == (4, {"q_proj", "v_proj"})
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size > 0
    with pytest.raises(UserError, match="experts of their own; name one"):
        model.export(tmp_path / "none")
    with pytest.raises(UserError, match="user 'eve' is not known"):
        model.export(tmp_path / "none", user="eve")


def test_one_user_alone_is_fitted(text, tmp_path):
    model = copl_jax.fit(rows(users=1, votes=3), text=text, config=CONFIG)
    assert model.users == ["ada-lovelace"]
    assert np.isfinite(model.score("ada-lovelace", PROMPT, CANDIDATES)).all()
    again = copl_jax.load(model.save(tmp_path / "m"))
    assert scored(again, "ada-lovelace") == scored(model, "ada-lovelace")


def test_mistakes_are_told(model, text, tmp_path):
    for call, message in (
        (lambda: copl_jax.fit(rows()), "give base= with text options"),
        (lambda: copl_jax.fit(rows(), text=text, max_length=8), "give base= with text options"),
        (lambda: copl_jax.fit("a.jsonl", base="x", wrong=1), "unknown options wrong"),
        (lambda: copl_jax.fit([], text=text), "no|empty"),
        (lambda: model.score("eve", PROMPT, CANDIDATES), "user 'eve' is not known"),
        (lambda: model.score("u1", PROMPT, CANDIDATES, uncertainty=True), "CoPL has no posterior"),
        (lambda: model.add_votes("bo", []), "no votes"),
        (lambda: model.add_votes("bo", [{**vote(1, likes_short=True), "user": "cy"}]), "give votes of one user"),
        (lambda: copl_jax.load(tmp_path), "reward.json"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert "bo" not in model.users


# --- votes of other kinds ---


def test_ties_strengths_and_choices_are_learned_from_kept_and_told(text, tmp_path):
    plain = pref_jax.read_votes(rows())
    table, count = plain.comparisons, plain.comparisons.num_rows
    number = np.arange(count)
    tie = number % 4 == 1
    columns: dict[str, Any] = {name: table[name] for name in ("user", "chosen", "rejected", "split", "controversial")}
    columns |= {"outcome": np.where(tie, "tie", "preferred").tolist()}
    columns |= {"strength": [None if own else 1.0 + row % 2 for row, own in enumerate(tie)]}
    # User 2 is unseen, and known by ties among others.
    seen, who = np.arange(plain.num_users) != 2, table["user"].to_numpy()
    columns["split"] = np.where(who == 2, "train", table["split"].to_pylist()).tolist()
    users = {**{name: plain.users[name] for name in ("user_id", "group")}, "seen": seen}
    votes = build(users, plain.responses, pa.table(columns), plain.meta, test=False)
    model = copl_jax.fit(votes, text=text, config=CONFIG)
    scale = model.scale
    assert scale is not None
    assert (scale.scale.ties, scale.scale.edges, len(scale.thresholds)) == (True, (2.0,), 2)
    assert (np.diff(scale.thresholds, prepend=0) > 0).all()
    assert len(model.facts["reward_scale"]["thresholds"]) == 2
    assert model.known.pairs.tie.sum() == tie.sum()
    assert set(model.params) == {"experts", "gates", "head"}
    again = copl_jax.load(model.save(tmp_path / "m"))
    for name in ("user", "chosen", "rejected", "tie", "strength", "choice"):
        np.testing.assert_array_equal(getattr(again.known.pairs, name), getattr(model.known.pairs, name))
    # A new user's ties move the embedding among the neighbours whom decided votes found, and find none alone.
    pairs = model.known.pairs.take(model.known.pairs.user == 0)
    one, ties = pairs.take(np.flatnonzero(~pairs.tie)[:3]), pairs.take(pairs.tie)
    for user, own in (("one", one), ("both", concatenate([one, ties])), ("ties", ties)):
        for found in (model, again):
            found.learn(user, own, unread=0)
    at = {name: model.known.users[model.known.ids.index(name)] for name in ("one", "both", "ties")}
    assert np.abs(at["one"] - at["both"]).max() > 1e-5
    assert "no one in the graph chose the same" in model.learn("ties", ties, unread=0).how
    assert [scored(model, name) for name in ("one", "both")] == [scored(again, name) for name in ("one", "both")]
    # From rows of a file too; where training had no ties, they are counted and told.
    held = {**vote(1, likes_short=True), "outcome": "tie"}
    before = int(model.known.pairs.tie.sum())
    assert model.add_votes("rows", [held, vote(2, likes_short=True)]).votes == 2
    assert model.known.pairs.tie.sum() == before + 1
    # Left out, ties teach nothing.
    graph = dataclasses.replace(CONFIG.graph, ties=False, strengths="ignore")
    assert CONFIG.reward is not None
    recipe = CONFIG.reward.training
    reward = dataclasses.replace(CONFIG.reward, training=dataclasses.replace(recipe, ties=False, strengths="ignore"))
    decided = copl_jax.fit(votes, text=text, config=dataclasses.replace(CONFIG, graph=graph, reward=reward))
    assert not decided.known.pairs.tie.any()
    added = decided.add_votes("rows", [held, vote(2, likes_short=True)])
    assert (added.votes, "1 ties" in added.how) == (1, True), added
    assert decided.scale is not None
    assert not len(decided.scale.thresholds)
    assert decided.facts["reward_scale"] is None
    shared = shared_reward.fit(votes, text=text, config=shared_reward.FitConfig(training=recipe))
    assert np.isfinite(shared.score(None, PROMPT, CANDIDATES)).all()


def test_where_nodes_have_texts_votes_on_new_texts_are_read_kept_and_forgotten(text, tmp_path):
    graph = linear_config(dim=8, epochs=20, nodes="both")
    model = copl_jax.fit(rows(), text=text, config=dataclasses.replace(CONFIG, graph=graph))
    before, alone = scored(model, "u1"), scored(model, None)
    new = [vote(number, True) for number in range(40, 44)]
    added = model.add_votes("new", new)
    assert (added.votes, added.how) == (4, "embedded from 4 votes")
    assert model.known.table is not None
    assert len(model.known.responses) == len(model.known.digests) == len(model.known.table.bias)
    # The same votes at once or in parts, or again by another user, find the same rows.
    count = len(model.known.digests)
    for part in (new[:2], new[2:]):
        model.add_votes("parts", part)
    assert len(model.known.digests) == count
    assert scored(model, "parts") == scored(model, "new") != alone
    folder = model.save(tmp_path / "saved")
    loaded = CoPL.restore(pref_jax.personal.read(folder, text=text))
    assert [scored(loaded, user) for user in ("new", "u1", None)] == [scored(model, "new"), before, alone]
    loaded.remove_user("new")
    assert len(loaded.known.digests) == count
    loaded.remove_user("parts")
    assert len(loaded.known.digests) == count - 8
    assert scored(loaded, "u1") == before
    assert loaded.add_votes("new", new).votes == 4
    assert scored(loaded, "new") == scored(model, "new")
