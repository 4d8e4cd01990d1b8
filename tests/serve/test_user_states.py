"""What a model knows of a user is a function of the loaded model and the user's votes, to the bit, for every method."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
import serving
import tiny

from copl_jax.fitted import CoPL, Known, digests, every_kind
from copl_jax.graph.solved_users import ResponseTable
from copl_jax.graph.text_nodes import TextMap
from copl_jax.reward import reward_model
from copl_jax.reward.lora_experts import ExpertsConfig
from copl_jax.reward.reward_model import RewardConfig
from copl_jax.reward.routing import GateConfig
from pref_jax.baselines import p_rlhf, shared
from pref_jax.baselines.head_training import HEADS
from pref_jax.baselines.model import Fitted, HeadReward, Member
from pref_jax.baselines.settings import BaselinesConfig
from pref_jax.baselines.shared import SharedConfig, SharedReward
from pref_jax.comparisons import Comparisons
from pref_jax.data.votes import vote_rows
from pref_jax.errors import UserError
from pref_jax.lm.lora import LoRAConfig
from pref_jax.lm.text_model import TextModel, as_responses, open_text
from pref_jax.personal import PersonalReward
from pref_jax.serve.user_states import UserStates
from pref_jax.standardiser import Standardiser

SIZES = BaselinesConfig(context=4, hidden=8, embedding=3, blocks=1, soft_tokens=2)
HEAD_NAMES = ("I2E", "VPL", "PAL-B", "GPO")
LORE = ("gaussian", "mixture", "simplex", "clusters", "with ties")
CASES = [*LORE, "CoPL", "CoPL of texts", "shared reward", "P-RLHF", *HEAD_NAMES, "VPL, adapted"]
WIDTH = 4


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> TextModel:
    folder = tiny.reward_model(tmp_path_factory.mktemp("base") / "decoder")
    return open_text(str(folder), max_length=48, batch_size=8)


def made(case: str, text: TextModel) -> PersonalReward:
    """A model of random numbers that knows three users."""
    if case in LORE:
        return serving.lore(text.folder, kind="gaussian" if case == "with ties" else case, ties=case == "with ties")
    if case.startswith("CoPL"):
        return copl(text, texts=case.endswith("texts"))
    key, config = jax.random.key(1), SharedConfig(lm=text.config, lora=LoRAConfig(rank=2))
    votes: dict[str, int] = dict.fromkeys(serving.KNOWN, 2)
    if case == "shared reward":
        return SharedReward(text=text, config=config, params=shared.init(config, key, text.params), votes=votes)
    if case == "P-RLHF":
        params = dict(p_rlhf.init(config, text.params, key, soft_tokens=2, num_users=3))
        rng, table = np.random.default_rng(2), params.pop("table")
        rows = {user: rng.normal(size=table.shape[1]).astype(np.float32) for user in serving.KNOWN}
        return p_rlhf.PRLHFReward(rows=rows, text=text, config=config, params=params, votes=votes)
    return head(case, text, config)


def head(case: str, text: TextModel, config: SharedConfig) -> HeadReward:
    name, _, adapted = case.partition(", ")
    kind, width = HEADS[name](SIZES)[0], text.config.hidden_size
    params = dict(kind.init(jax.random.key(1), width, 3))
    table = np.asarray(params.pop("table", np.zeros((3, 0))), np.float32)
    adapters = (config, shared.init_adapters(config, jax.random.key(3))) if adapted else None
    scale = Standardiser(jnp.zeros(width), jnp.ones(width))
    none = np.zeros((0, 3, width), np.float32)
    rng = np.random.default_rng(5)
    some = rng.normal(size=(3, 2, 3, width)).astype(np.float32)
    members = {
        user: Member(table[place], none if kind.has_table else some[place], 2, kind.has_table)
        for place, user in enumerate(serving.KNOWN)
    }
    return HeadReward(text=text, fitted=Fitted(kind, params, scale, SIZES.context, adapters), members=members)


def copl(text: TextModel, *, texts: bool) -> CoPL:
    """A graph of three users and half of the responses of the test's votes; with `texts` the rest is read too."""
    config = RewardConfig(lm=text.config, mixture=ExpertsConfig(num_experts=3, rank=2), gate=GateConfig(hidden=8))
    params = reward_model.init(config, jax.random.key(0), embedding_dim=WIDTH, base=text.params)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    rng = np.random.default_rng(0)
    rows = vote_rows([{**serving.row(serving.vote(number)), "user": "x"} for number in range(6)]).responses
    found = np.unique(digests(rows), axis=0)
    count, width = len(found), text.config.hidden_size

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    users, responses = draw(3, WIDTH), draw(count, WIDTH)
    users /= np.linalg.norm(users, axis=1, keepdims=True)
    pairs = Comparisons(np.repeat(np.arange(3), 4), *rng.permuted(np.tile(np.arange(count), (12, 1)), axis=1)[:, :2].T)
    table = None
    if texts:
        own = TextMap(np.zeros(width, np.float32), np.ones(width, np.float32), draw(width, WIDTH), draw(width))
        degrees = np.ones((count, 2), np.float32)
        table = ResponseTable(responses, draw(count), draw(count, WIDTH), degrees, 1.0, "distinct", own)
    graph = np.ones(3, bool)
    known = Known(list(serving.KNOWN), users, responses, found, every_kind(pairs), graph, table)
    return CoPL(text=text, config=config, params=params, known=known, facts={"scale": None})


def scored(model: PersonalReward, user: str | None) -> bytes:
    return np.asarray(model.score(user, serving.PROMPT, serving.TEXTS)).tobytes()


def rows_of(user: str, numbers: range) -> list[dict[str, Any]]:
    choices = ("first", "second", "tie")
    return [serving.row(serving.vote(n, choices[n % 3 if n > 2 else n % 2])) for n in numbers]


def give(model: PersonalReward, user: str, rows: list[dict[str, Any]], origin: Any, read: Any = None) -> bytes:
    """The user set back, given all votes, scored."""
    model.restore_user(user, origin)
    model.add_votes(user, rows, read=read)
    return scored(model, user)


@pytest.mark.parametrize("case", CASES)
def test_a_user_is_a_function_of_the_loaded_model_and_their_votes(case, text):
    one, other = made(case, text), made(case, text)
    before = {user: scored(one, user) for user in (None, *serving.KNOWN)}
    assert case == "shared reward" or len(set(before.values())) > 2, "users differ"
    origin, votes = one.snapshot_user("new"), rows_of("new", range(4))
    # One by one, always from the start, while others come, vote and go.
    for count in (1, 2, 4):
        found = give(one, "new", votes[:count], origin)
        one.add_votes("bo/ba", rows_of("bo/ba", range(count, count + 2)))
        one.add_votes(f"stranger {count}", rows_of("s", range(5 - count, 7)))
    one.restore_user("stranger 1", None)
    assert found == give(other, "new", votes, None) == scored(one, "new")
    # One is taken back and given again; one who was known before votes and is set back.
    without = give(one, "new", votes[:1] + votes[2:], origin)
    assert without == give(made(case, text), "new", votes[:1] + votes[2:], None)
    assert give(one, "new", votes, origin) == found
    known = one.snapshot_user("ada")
    assert give(one, "ada", votes, known) == give(other, "ada", votes, other.snapshot_user("ada"))
    one.restore_user("ada", known)
    one.restore_user("new", None)
    assert [one.knows(user) for user in ("new", "ada")] == [False, True]
    left = (None, "ada", "cy")
    assert [scored(one, user) for user in left] == [before[user] for user in left]


@pytest.mark.parametrize("case", CASES)
def test_rewards_of_what_was_read_are_rewards(case, text):
    model = made(case, text)
    table = as_responses([serving.PROMPT] * 3, serving.TEXTS)
    users: list[str | None] = ["ada", None, "cy"]
    whole = model.rewards(users, table, uncertainty=False).mean
    read = model.read(table)
    assert (read is None) == model.reads_with_user == (case.startswith("CoPL") or case == "P-RLHF")
    if read is None:
        with pytest.raises(UserError, match=r"call rewards|no posterior|no attribute"):
            model.rewards_of(users, np.zeros((3, 1), np.float32), uncertainty=False)
        return
    alone = np.concatenate([np.asarray(model.read(table.slice(place, 1))) for place in range(3)])
    assert alone.tobytes() == read.tobytes()
    for rows in (read, alone):
        assert model.rewards_of(users, rows, uncertainty=False).mean.tobytes() == whole.tobytes()
    each = [model.rewards_of([user], read[n : n + 1], uncertainty=False).mean[0] for n, user in enumerate(users)]
    np.testing.assert_array_equal(each, whole)
    # Tokens give what their texts give, but where the head reads the prompt apart.
    if case == "PAL-B":
        with pytest.raises(UserError, match="reads the prompt apart"):
            model.read(text.tokenize(table))
    else:
        assert np.asarray(model.read(text.tokenize(table))).tobytes() == read.tobytes()
    # Votes are read by what is given in place of `read`, and are read as without.
    calls: list[int] = []

    def kept(rows: pa.Table) -> Any:
        calls.append(rows.num_rows)
        return model.read(rows)

    votes = rows_of("new", range(5))
    first = give(model, "new", votes, None)
    assert give(model, "new", votes, None, kept) == first
    assert bool(calls) == (case != "shared reward")


@pytest.mark.parametrize("case", ["gaussian", "mixture", "clusters", "with ties"])
def test_the_most_telling_pair_is_asked_first(case, text):
    model = made(case, text)
    table = as_responses([serving.PROMPT] * 6, [*serving.WORDS[:6]])
    read: Any = model.read(table)
    # The third pair is of one text: its answer tells nothing.
    first, second = read[[0, 2, 4]], read[[1, 3, 4]]
    found = model.select_pairs("ada", first, second, 5)
    assert found is not None
    assert sorted(one.pair for one in found) == [0, 1, 2]
    assert found[-1].pair == 2
    # Float32's error of an entropy less itself.
    assert found[0].information > found[1].information > 1e-5 > found[2].information
    (alone,) = model.select_pairs("ada", first, second, 1) or [None]
    assert alone is not None
    assert alone.pair == found[0].pair
    told = model.describe_user("ada")
    assert len(told["weights"]) == len(told["deviations"]) == 3
    assert model.select_pairs(None, first, second, 1) is not None


def test_methods_without_a_posterior_ask_nothing(text):
    for case in ("simplex", "shared reward", "VPL"):
        model = made(case, text)
        read: Any = model.read(as_responses(["?", "?"], ["red", "rain"]))
        assert model.select_pairs("ada", read[:1], read[1:], 1) is None
    for case in ("CoPL", "I2E", "shared reward", "simplex"):
        assert isinstance(made(case, text).describe_user("ada"), dict)
        with pytest.raises(UserError, match="'eve' is not known"):
            made(case, text).describe_user("eve")


def test_a_removed_user_is_gone_from_model_and_folder_for_every_replica(text, tmp_path):
    folder = made("gaussian", text).save(tmp_path / "mine")

    def opened() -> UserStates:
        return UserStates(LoRe_of(folder), folder)

    def LoRe_of(path: Any) -> PersonalReward:
        import pref_jax

        return pref_jax.load(path, batch_size=8)

    one, other = opened(), opened()
    removal = one.remove("ada")
    assert removal == (True, True, "")
    assert not one.known("ada")
    assert b"ada" not in b"".join(file.read_bytes() for file in folder.iterdir())
    assert other.known("ada")
    assert other.folder_changed
    other.sync()
    assert not other.known("ada")
    assert not other.folder_changed
    # A second removal, by another replica, brings nobody back.
    assert other.remove("cy") == (True, True, "")
    one.sync()
    assert [one.known(user) for user in serving.KNOWN] == [False, True, False]
    assert LoRe_of(folder).users == ["bo/ba"]
    assert one.remove("eve") == (False, True, "")
