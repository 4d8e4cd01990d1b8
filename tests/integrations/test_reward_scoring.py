"""What all trainers' reward functions share: users, units, empty answers, alarms, and calls from many threads."""

import concurrent.futures
import functools
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import tastes

import lore_jax
from pref_jax.errors import UserError
from pref_jax.integrations.backends import Row
from pref_jax.integrations.coalescing import Coalescer
from pref_jax.integrations.groups import group_numbers, normalised_sum
from pref_jax.integrations.reference import MOST, Reference
from pref_jax.integrations.rendered import answer_of, as_messages, without_end
from pref_jax.integrations.scoring import Options, Scorer, dialogue, new_scorer, user_id
from pref_jax.lm.text_model import as_responses
from pref_jax.personal import Components, PersonalReward

ANSWERS = ["tea milk now", "coffee foam", "cup bowl", "lemon coffee"]


def test_rewards_are_the_models(model):
    users = ["ada", "bo", "ada-1", "bo"]
    scorer = Scorer(model, Options(uncertainty=True))
    found = scorer(users, ["lunch"] * 4, ANSWERS)
    want = model.score(users, ["lunch"] * 4, ANSWERS, uncertainty=True)
    np.testing.assert_array_equal(found.reward.astype(np.float32), want.mean)
    np.testing.assert_array_equal(found.deviation.astype(np.float32), want.deviation)
    assert not found.shared.any()
    assert scorer.counts == {"answers": 4, "missing_user": 0, "unknown_user": 0, "empty": 0}


def test_components_make_up_rewards(model):
    users = ["ada", None, "bo", "ada-1"]
    rows = as_responses(["lunch"] * 4, ANSWERS)
    parts = model.components(users, rows)
    want = model.rewards(users, rows, uncertainty=False).mean
    assert parts.weights.shape == parts.basis.shape == (4, model._fit.basis.shape[1])
    np.testing.assert_allclose((parts.weights * parts.basis).sum(1), want, rtol=1e-6)
    # The basis is the text's alone, the weights are the user's alone.
    again = model.components(["bo"] * 4, rows)
    np.testing.assert_array_equal(again.basis, parts.basis)
    np.testing.assert_array_equal(again.weights, np.broadcast_to(parts.weights[2], again.weights.shape))


def test_whoever_is_missing_or_unknown_gets_the_shared_reward_and_is_counted(model, capsys):
    scorer = Scorer(model, Options())
    users = [None, "", float("nan"), "eve", np.str_("ada")]
    found = scorer(users, ["lunch"] * 5, ["tea milk now"] * 5)
    nobody, ada = model.score(None, "lunch", ANSWERS[:1])[0], model.score("ada", "lunch", ANSWERS[:1])[0]
    np.testing.assert_array_equal(found.reward.astype(np.float32), [nobody] * 4 + [ada])
    assert found.shared.tolist() == [True] * 4 + [False]
    scorer(["eve"], ["lunch"], ["cup"])
    assert scorer.counts == {"answers": 6, "missing_user": 3, "unknown_user": 2, "empty": 0}
    told = capsys.readouterr().err
    assert told.count("the reward of nobody in particular") == 1
    assert "3 answers without a user (column 'user') and 1 of users that the model does not know" in told
    with pytest.raises(UserError, match="users 'eve' are not known to the model"):
        Scorer(model, Options(unknown="error"))(["ada", "eve"], ["lunch"] * 2, ANSWERS[:2])


def test_empty_answers_are_worth_what_was_said(model):
    for vector in (False, True):
        scorer = Scorer(model, Options(empty=-7.0, vector=vector))
        found = scorer(["ada", "ada"], ["lunch"] * 2, [" \n", "tea"])
        assert found.reward[0] == -7
        assert found.reward[1] == pytest.approx(model.score("ada", "lunch", ["tea"])[0])
        assert found.empty.tolist() == [True, False]
        assert scorer.counts["empty"] == 1
    assert found.components is not None
    np.testing.assert_allclose((found.components.weights * found.components.basis).sum(1)[0], -7)


def test_clean_decides_what_is_scored(model):
    scorer = Scorer(model, Options(clean=lambda text: text.split("</think>")[-1]))
    found = scorer(["ada"], ["lunch"], ["<think>coffee</think>tea"])
    assert found.reward[0] == pytest.approx(model.score("ada", "lunch", ["tea"])[0])


@pytest.mark.parametrize(("centre", "scale"), [(True, False), (False, True), (True, True)])
def test_units_are_those_of_the_reference(model, centre, scale):
    rng = np.random.default_rng(5)
    reference = [("dinner", text) for text in {tastes.answer(rng) for _ in range(60)}]
    options = Options(reference=reference, centre=centre, scale=scale, uncertainty=True)
    users = ["ada", "bo", None, "eve"]
    found = Scorer(model, options)(users, ["lunch"] * 4, ANSWERS)
    for place, user in enumerate(["ada", "bo", None, None]):
        over = model.score(user, "dinner", [text for _, text in reference])
        raw = model.score(user, "lunch", [ANSWERS[place]], uncertainty=True)
        want = (raw.mean[0] - (over.mean() if centre else 0)) / (over.std() if scale else 1)
        np.testing.assert_allclose(found.reward[place], want, rtol=1e-4, atol=1e-4)
        deviation = raw.deviation[0] / (over.std() if scale else 1)
        np.testing.assert_allclose(found.deviation[place], deviation, rtol=1e-4)
    # The order of neither reference nor answers matters.
    turned = Scorer(model, Options(reference=reference[::-1], centre=centre, scale=scale))
    again = turned(users[::-1], ["lunch"] * 4, ANSWERS[::-1])
    np.testing.assert_allclose(again.reward[::-1], found.reward, rtol=1e-6, atol=1e-6)


def test_a_reference_can_be_votes(model):
    votes = tastes.votes(each=30)
    reference = Reference(votes)
    texts = {(row["prompt"], row[side]) for row in votes for side in ("chosen", "rejected")}
    assert len(reference.rows) == min(MOST, len(texts)) == MOST
    assert {row.answer for row in reference.rows} <= {text for _, text in texts}
    assert Reference(votes[::-1]).rows == reference.rows
    for bad, message in (([], "0 different responses"), ([("?", "a"), ("?", "a")], "1 different responses")):
        with pytest.raises(UserError, match=message):
            Reference(bad)
    same = Options(reference=[("a", "tea"), ("b ", "tea"), ("a", "tea ")], centre=True)
    assert Scorer(model, same)(["ada"], ["a"], ["tea"]).reward.shape == (1,)


@pytest.mark.parametrize("clean", [lambda text: "tea", lambda text: ""])
def test_the_alarm_is_raised_once_where_what_is_scored_is_always_the_same(model, capsys, clean):
    answers = [f"tea {'milk ' * count}" for count in range(1, 20)]
    scorer = Scorer(model, Options())
    scorer(["ada"] * 19, ["lunch"] * 19, answers)
    # A policy that says one thing is no fault of the reward.
    scorer(["ada"] * 40, ["lunch"] * 40, ["tea"] * 40)
    assert not scorer.alarm.raised
    broken = Scorer(model, Options(clean=clean))
    for answer in answers[:7]:
        broken(["ada", "bo"], ["lunch"] * 2, [answer] * 2)
    assert not broken.alarm.raised
    for answer in answers:
        broken(["ada", "bo"], ["lunch"] * 2, [answer] * 2)
    assert broken.alarm.raised
    assert capsys.readouterr().err.count("different answers in a row have the same reward") == 1


def test_what_has_no_basis_or_no_texts_is_refused(folder):
    features = lore_jax.load(folder)
    features.text = None
    with pytest.raises(UserError, match="reads features, not texts"):
        Scorer(features, Options())
    with pytest.raises(UserError, match="tells rewards, not their basis"):
        Scorer("http://127.0.0.1:9", Options(vector=True))(["ada"], ["lunch"], ["tea"])
    other: Any = lore_jax.load(folder)
    other.components = functools.partial(PersonalReward.components, other)  # as of CoPL
    with pytest.raises(UserError, match="this method has no basis rewards"):
        Scorer(other, Options(vector=True))(["ada"], ["lunch"], ["tea"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unknown": "skip"}, "unknown is 'skip'; give one of shared, error"),
        ({"centre": True}, "centre and scale need reference="),
        ({"colour": 1}, "no option colour; there are user_column, unknown"),
    ],
)
def test_options_are_checked(model, options, message):
    with pytest.raises(UserError, match=message):
        new_scorer(model, options)


@pytest.mark.parametrize(("source", "message"), [(7, "got a int; give a model"), ("no/where", "no saved model there")])
def test_sources_are_checked(source, message):
    with pytest.raises(UserError, match=message):
        Scorer(source, Options())


def test_a_scorer_of_a_folder_travels(model, folder):
    scorer = pickle.loads(pickle.dumps(Scorer(folder, Options(empty=-3.0))))
    assert scorer(["ada"], ["lunch"], ["tea"]).reward == pytest.approx(model.score("ada", "lunch", ["tea"]))
    assert scorer.options.empty == -3
    with pytest.raises(TypeError, match="give the model's folder"):
        pickle.dumps(Scorer(model, Options()))


# --- calls from many threads ---


def test_calls_that_wait_are_answered_together(model):
    scorer: Any = Scorer(model, Options())
    users, answers = ["ada", "bo"] * 20, [f"{word} {other}" for word in tastes.WORDS[:8] for other in tastes.WORDS[:5]]
    sizes = []
    whole = model.rewards
    rewards = lambda users, rows, **how: sizes.append(len(users)) or whole(users, rows, **how)  # noqa: E731
    scorer._backend.model = type("Watched", (), {"rewards": staticmethod(rewards), "knows": model.knows})()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda user, text: scorer([user], ["lunch"], [text]).reward[0], users, answers))
    np.testing.assert_allclose(found, model.score(users, ["lunch"] * 40, answers), rtol=1e-5, atol=1e-5)
    assert sum(sizes) == 40
    assert len(sizes) < 40
    assert scorer.counts["answers"] == 40


def test_a_bad_call_fails_alone():
    gate, entered = threading.Event(), threading.Event()

    def run(rows):
        entered.set()
        gate.wait(5)
        if "bad" in rows:
            raise ValueError("bad")
        return [row * 2 for row in rows]

    call = Coalescer(run)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        first = pool.submit(call, ["a"])
        assert entered.wait(5)
        others = [pool.submit(call, [row]) for row in ("b", "bad", "c")]
        while len(call._waiting) < 3:
            pass
        gate.set()
        assert first.result() == ["aa"]
        assert [others[0].result(), others[2].result()] == [["bb"], ["cc"]]
        with pytest.raises(ValueError, match="bad"):
            others[1].result()


# --- groups, prompts, answers ---


def test_normalise_then_sum_by_hand():
    z = np.array([[0.0, 1.0], [2.0, 1.0], [5.0, 0.0], [1.0, 4.0]])
    w = np.array([[1.0, -2.0]] * 2 + [[0.0, 3.0]] * 2)
    found = normalised_sum(Components(w, z), np.array([0, 0, 1, 1]), np.ones(4, bool))
    half = np.sqrt(0.5)
    want = [-half, half, -3 * half, 3 * half]
    np.testing.assert_allclose(found, want, rtol=1e-3)
    left = normalised_sum(Components(w, z), np.array([0, 0, 0, 0]), np.array([True, True, False, False]))
    np.testing.assert_allclose(left, [-half, half, 0, 0], rtol=1e-3)


def test_groups_are_runs_or_of_a_size():
    keys = ["a", "a", "a", "a", "b", "b"]
    assert group_numbers(keys).tolist() == [0, 0, 0, 0, 1, 1]
    assert group_numbers(keys, 2).tolist() == [0, 0, 1, 1, 2, 2]
    for size, message in ((4, "are no groups of 4"), (3, "not of one prompt and user")):
        with pytest.raises(UserError, match=message):
            group_numbers(keys, size)


@pytest.mark.parametrize(
    ("completion", "want"),
    [
        ("tea", ("lunch", "tea")),
        ([{"role": "assistant", "content": "tea"}], ("lunch", "tea")),
        ([{"role": "assistant", "content": [{"type": "text", "text": "tea"}]}], ("lunch", "tea")),
        ([{"role": "tool", "content": "5"}], ("lunch", "")),
        ([], ("lunch", "")),
        (
            [
                {"role": "assistant", "content": "?"},
                {"role": "user", "content": "!"},
                {"role": "assistant", "content": "x"},
            ],
            (
                [
                    {"role": "user", "content": "lunch"},
                    {"role": "assistant", "content": "?"},
                    {"role": "user", "content": "!"},
                ],
                "x",
            ),
        ),
    ],
)
def test_a_completion_is_a_prompt_and_an_answer(completion, want):
    assert dialogue("lunch", completion) == want


def test_ids_are_texts():
    assert [user_id(value) for value in ("a", 3, np.int64(4), None, " ")] == ["a", "3", "4", None, None]
    with pytest.raises(UserError, match="is of type list"):
        user_id(["ada"])


CHATML = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n"
LLAMA = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHow?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
GEMMA = "<bos><start_of_turn>user\nHow?<end_of_turn>\n<start_of_turn>model\n"


def test_rendered_prompts_become_messages_again(capsys):
    user = {"role": "user", "content": "How?"}
    assert as_messages(CHATML) == [{"role": "system", "content": "Be kind."}, user]
    assert as_messages(CHATML + "<think>\n\n</think>\n\n") == [{"role": "system", "content": "Be kind."}, user]
    assert as_messages(LLAMA) == as_messages(GEMMA) == [user]
    turn = GEMMA + "So.<end_of_turn>\n<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n"
    assert as_messages(turn) == [user, {"role": "assistant", "content": "So."}, {"role": "user", "content": "Why?"}]
    assert as_messages("How?") == "How?"
    assert as_messages("[INST] How? [/INST]") == "[INST] How? [/INST]"
    assert "a chat template that is not known here" in capsys.readouterr().err


def test_an_answer_is_what_follows_its_prompt():
    query = CHATML + "So it is.<|im_end|>"
    for found in (query, "<s>" + query, query[40:]):
        assert without_end(answer_of(found, CHATML) or "") == "So it is."
    assert answer_of("something else", "a prompt") is None
    assert Row("ada", "a", "b").user == "ada"
