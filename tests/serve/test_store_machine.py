"""Random calls on two handles of one store, compared with a plain dict."""

import itertools
from collections.abc import Callable

import pytest
from ballots import given, vote
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from experiments.benchmarks.store_crash import strays
from pref_jax.serve.store.errors import VoteConflictError
from pref_jax.serve.store.store import Store

USERS = st.sampled_from(["ada", "bo", "çelik"])
# Few ids and texts, so that they meet.
TEXTS = st.sampled_from(["one", "two", "three"])
VOTES = st.builds(
    lambda name, choice, pair, prompt: vote(name, choice, first=pair[0], second=pair[1], prompt=prompt),
    st.sampled_from("abcdefg"),
    st.sampled_from(["first", "tie", "skip"]),
    st.lists(TEXTS, min_size=2, max_size=2, unique=True),
    st.sampled_from(["Why?", [{"role": "user", "content": "Why?"}]]),
)
HANDLES = st.integers(0, 1)


class Machine(RuleBasedStateMachine):
    """The store, and beside it user -> id -> vote in order, and all revisions that a user ever had."""

    new_store: Callable[[], str]

    def __init__(self):
        super().__init__()
        url = self.new_store()
        self.handles = [Store.open(url), Store.open(url)]
        self.users, self.revisions = {}, {}

    def teardown(self):
        assert strays(self.handles[0]) == 0
        for handle in self.handles:
            handle.close()

    @rule(handle=HANDLES, user=USERS, votes=st.lists(VOTES, max_size=3))
    def add(self, handle, user, votes):
        taken = {name: (who, old) for who, own in self.users.items() for name, old in own.items()}
        given = {}
        for each in votes:
            if taken.get(each.id, (user, each)) != (user, each) or given.setdefault(each.id, each) != each:
                with pytest.raises(VoteConflictError):
                    self.handles[handle].add(user, votes)
                return
        added = self.handles[handle].add(user, votes)
        new = {name: each for name, each in given.items() if name not in taken}
        assert added.stored == tuple(new)
        assert set(added.repeated) == given.keys() - new.keys()
        if new:
            self.users.setdefault(user, {}).update(new)
            self._moved(user)

    @rule(handle=HANDLES, user=USERS, name=st.sampled_from("abcdefg"))
    def remove_vote(self, handle, user, name):
        there = name in self.users.get(user, {})
        assert self.handles[handle].remove_vote(user, name) == there
        if there:
            del self.users[user][name]
            self._moved(user)

    @rule(handle=HANDLES, user=USERS)
    def remove_user(self, handle, user):
        gone = self.users.pop(user, {})
        removed = self.handles[handle].remove_user(user)
        named = {text for own in self.users.values() for each in own.values() for text in _texts(each)}
        alone = {text for each in gone.values() for text in _texts(each)} - named
        assert removed[:3] == (len(gone), len(alone), 0)

    def _moved(self, user):
        """A revision that was never there before."""
        revision = self.handles[0].revision(user)
        assert revision > max(self.revisions.get(user, [0]))
        self.revisions.setdefault(user, []).append(revision)

    @invariant()
    def both_handles_tell_what_the_model_tells(self):
        for handle, user in itertools.product(self.handles, ("ada", "bo", "çelik")):
            own = self.users.get(user)
            revision, votes = handle.history(user)
            assert [given(each) for each in votes] == list((own or {}).values())
            assert revision == (0 if own is None else self.revisions[user][-1])
        assert {user.id: user.votes for user in self.handles[1].users()} == {k: len(v) for k, v in self.users.items()}


def _texts(each):
    return str(each.prompt), each.first, each.second


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_store_is_a_dict(kind, request, tmp_path):
    files = (str(tmp_path / f"{number}.db") for number in itertools.count())
    postgres = request.getfixturevalue("postgres") if kind == "postgresql" else None

    class Here(Machine):
        new_store = staticmethod(lambda: next(files) if postgres is None else postgres.database("empty_store"))

    small = settings(
        max_examples=5, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    run_state_machine_as_test(Here, settings=small)
