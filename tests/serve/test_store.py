"""The store's promises, each on SQLite and on a real PostgreSQL."""

import contextlib
import math
import random
import sqlite3
import stat
from pathlib import Path

import pytest
import sqlalchemy as sa
from ballots import CHAT, FULL, given, vote

from experiments.benchmarks.store_crash import strays
from pref_jax.errors import UserError
from pref_jax.serve.store import checks
from pref_jax.serve.store.engine import Database
from pref_jax.serve.store.errors import VoteConflictError
from pref_jax.serve.store.records import Added, Key, Pair, Removed, User
from pref_jax.serve.store.store import Store


def test_votes_come_back_as_they_were_given(store, url):
    votes = [FULL, vote("1"), *(vote(choice, choice) for choice in ("tie", "both_bad", "skip"))]
    assert store.add("ada", votes) == Added(tuple(each.id for each in votes), ())
    stored = store.votes("ada")
    assert [given(each) for each in stored] == votes
    numbers = [each.number for each in stored]
    assert numbers == sorted(set(numbers))
    assert store.votes("ada", after=numbers[2]) == stored[3:]
    assert store.revision("ada") == numbers[-1]
    assert store.history("ada", numbers[-1]) == (numbers[-1], [])
    assert (store.votes("bo"), store.revision("bo")) == ([], 0)
    with Store.open(url) as again:
        assert again.votes("ada") == stored


def test_a_repeated_vote_is_stored_once(store):
    store.add("ada", [vote("1")])
    before = store.history("ada")
    again = vote("1", shown="left", time=1.0, model_version="newer")
    assert store.add("ada", [again, again, vote("1")]) == Added((), ("1",))
    assert store.history("ada") == before
    assert store.add("ada", [vote("2"), vote("1"), vote("2")]) == Added(("2",), ("1",))
    assert [each.id for each in store.votes("ada")] == ["1", "2"]


@pytest.mark.parametrize(
    "other",
    [{"choice": "second"}, {"strength": 2.0}, {"prompt": CHAT}, {"first": "No."}, {"second": "No."}],
    ids=lambda other: next(iter(other)),
)
def test_an_id_that_is_taken_stops_all_and_tells_no_content(store, other):
    store.add("ada", [vote("1")])
    before = store.history("ada")
    for user, votes in (("ada", [vote("2"), vote("1", **other)]), ("bo", [vote("2"), vote("1")])):
        with pytest.raises(VoteConflictError, match=r"nothing was stored.*id '1'") as error:
            store.add(user, votes)
        assert "minutes" not in str(error.value)
        assert "ada" not in str(error.value)
    with pytest.raises(VoteConflictError):
        store.add("bo", [vote("3"), vote("3", **other)])
    assert store.history("ada") == before
    assert store.votes("bo") == []
    assert strays(store) == 0


def test_a_vote_taken_back_is_gone_and_its_id_free(store):
    store.add("ada", [vote("1"), vote("2", first="Only here.")])
    before = store.revision("ada")
    assert store.remove_vote("ada", "2")
    assert store.revision("ada") > before
    assert not store.remove_vote("ada", "2")
    assert not store.remove_vote("bo", "1")
    assert [each.id for each in store.votes("ada")] == ["1"]
    assert strays(store) == 0
    last = store.revision("ada")
    assert store.add("ada", [vote("2", "tie")]).stored == ("2",)
    assert store.revision("ada") > last


def test_a_removed_user_leaves_what_others_have(store):
    own = vote("2", prompt=CHAT, first="Mine alone.", second="Of the pool.")
    store.add("ada", [vote("1"), own])
    store.add("bo", [vote("3")])
    store.add_pairs("pool", [Pair(id="p", prompt="Why?", first="Of the pool.", second="So.")])
    key = store.add_key("ada's", {"vote"}, "ada")
    before, others = store.revision("ada"), store.history("bo")
    assert store.remove_user("ada")[:3] == (2, 2, 1)
    assert (store.revision("ada"), store.votes("ada"), store.key(key)) == (0, [], None)
    assert store.history("bo") == others
    assert store.users() == [User("bo", 1, others.revision)]
    assert strays(store) == 0
    assert store.remove_user("ada")[:3] == (0, 0, 0)
    store.add("ada", [vote("1")])
    assert store.revision("ada") > before


def removed_users_still_found(path, seed, steps):
    """Users come and go at random; after each removal the files are searched."""
    drawn, there = random.Random(seed), []
    with Store.open(str(path)) as store:
        for step in range(steps):
            if drawn.random() >= 0.6 and there:
                there.remove(gone := drawn.choice(there))
                store.remove_user(gone)
                data = b"".join(file.read_bytes() for file in path.parent.iterdir())
                assert all(user[:7].encode() in data for user in there)
                if gone[:7].encode() in data:
                    yield gone
                continue
            user, votes = f"user{step:03}" + "z" * drawn.choice([0, 10, 200]), []
            for place in range(drawn.choice([1, 3, 10])):
                parts = ("prompt", "first", "second")
                own = {part: f"<{user[:7]} {part}{place}" + "x" * drawn.choice([1, 40, 300, 3000]) for part in parts}
                votes.append(vote(f"id {user} {place}", asked=user[:7], **own))
            store.add(user, votes)
            there.append(user)


def test_no_byte_of_a_removed_user_is_left_in_sqlite(tmp_path, monkeypatch):
    seeds = [9, 10, *range(9)]
    for number in range(2 * len(seeds)):
        (tmp_path / str(number)).mkdir()
    files = (tmp_path / str(number) / "votes.db" for number in range(2 * len(seeds)))
    for seed in seeds[:3]:
        assert list(removed_users_still_found(next(files), seed, 30)) == []

    def only_empty_the_log(database):
        with contextlib.closing(database.engine.raw_connection()) as connection:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    # Rows that move from page to page leave copies, which SQLite's secure_delete does not reach.
    monkeypatch.setattr(Database, "wipe", only_empty_the_log)
    assert any(any(removed_users_still_found(next(files), seed, 30)) for seed in seeds)


def test_a_wiping_that_a_reader_held_up_is_done_when_the_store_is_opened_next(tmp_path):
    path = tmp_path / "votes.db"
    store = Store.open(str(path), wait=0.1)
    store.add("ada", [vote("1", first="Secret text.")])
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM votes").fetchone()
    assert store.remove_user("ada") == Removed(1, 3, 0, False)
    reader.execute("ROLLBACK")
    reader.execute("BEGIN IMMEDIATE")
    assert store._database.wipe() is False
    store.close()
    reader.close()
    Store.open(str(path)).close()
    assert b"Secret" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_no_row_of_a_removed_user_is_left_in_postgresql(postgres):
    url = postgres.database(template="empty_store")
    with Store.open(url) as store:
        store.add("gone", [vote("gone-1", first="gone text", asked="gone rule", prompt=CHAT)])
        store.add_key("key", {"vote"}, "gone")
        store.add("stays", [vote("1")])
        store.remove_user("gone")
        with store._database.read() as connection:
            tables = sa.inspect(connection).get_table_names()
            rows = [row for table in tables for row in connection.execute(sa.text(f"SELECT * FROM {table}"))]
    assert "stays" in str(rows)
    assert "gone" not in str(rows)


def test_users_come_in_pages_in_the_order_of_code_points(postgres, tmp_path):
    names = ["Zoë", "ada", "Ada", "éva", "z", "_", "漢", "a b", "🐈"]
    # A language's own order is another one.
    collated = postgres.database("template0", "LOCALE_PROVIDER icu ICU_LOCALE 'en-US'")
    for url in (collated, str(tmp_path / "votes.db")):
        with Store.open(url) as store:
            for name in names:
                store.add(name, [vote(name)])
            found, after = [], ""
            while some := store.users(after, limit=2):
                assert len(some) <= 2
                found += some
                after = some[-1].id
            assert [user.id for user in found] == sorted(names)
            assert {user.votes for user in found} == {1}


def test_keys_open_until_they_are_removed(store):
    key = store.add_key("page", ["vote", "score", "vote"], "ada")
    other = store.add_key("trainer", {"score"})
    assert len(key) > 43
    assert key != other
    assert store.key(key) == Key("page", frozenset({"score", "vote"}), "ada")
    listed = store.keys()
    assert [each.name for each in listed] == ["page", "trainer"]
    for wrong in ("", key[:-1], key + "=", "\0", "\ud800", "x" * 100_000):
        assert store.key(wrong) is None
    with pytest.raises(UserError, match="a key has the name 'page'"):
        store.add_key("page", {"vote"}, "eve")
    assert [user.id for user in store.users()] == ["ada"]
    assert store.remove_key("page")
    assert not store.remove_key("page")
    assert store.key(key) is None
    for rights in ([], [""], ["a b"], ["SCORE"], ["x" * 33]):
        with pytest.raises(UserError, match="rights"):
            store.add_key("new", rights)


def test_only_a_keys_hash_is_stored(tmp_path):
    with Store.open(str(tmp_path / "votes.db")) as store:
        key = store.add_key("page", {"vote"})
        data = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"page" in data
    assert key.encode() not in data
    assert key.removeprefix("pref_").encode() not in data


def test_pools_keep_their_order_and_their_pairs(store):
    pairs = [Pair(id=name, prompt=CHAT, first=f"{name}1", second=f"{name}2") for name in "cab"]
    assert store.add_pairs("pool", pairs[:2]) == 2
    assert store.add_pairs("pool", [*pairs, pairs[2]]) == 1
    assert store.pairs("pool") == pairs
    assert store.pairs("pool", after="a") == pairs[2:]
    assert store.pairs("pool", limit=1) == pairs[:1]
    assert store.pairs("none") == []
    with pytest.raises(VoteConflictError, match="'a'"):
        store.add_pairs("pool", [Pair(id="new", prompt="Why?", first="1", second="2"), pairs[0], _other(pairs[1])])
    assert store.add_pairs("more", [_other(pairs[1])]) == 1
    assert store.pools() == {"more": 1, "pool": 3}
    store.add("ada", [vote("1", first="a1", pair="a")])
    assert store.remove_pool("pool") == 3
    assert (store.pools(), store.remove_pool("pool")) == ({"more": 1}, 0)
    assert strays(store) == 0
    assert store.votes("ada")[0].first == "a1"


def _other(pair):
    return Pair(id=pair.id, prompt=pair.prompt, first=pair.first, second="Something else.")


def test_model_versions_are_noted_once(store):
    store.use_model("a", {"rank": 2, "trained": "2026"})
    store.use_model("b", {})
    store.use_model("a", {"rank": 3})
    assert [(model.version, dict(model.facts)) for model in store.models()] == [("a", {"rank": 3}), ("b", {})]
    assert store.models()[0].since <= store.models()[1].since
    with pytest.raises(UserError, match="no JSON"):
        store.use_model("c", {"loss": math.nan})


def test_statistics_count_days_and_tell_judgements_alike_whichever_way_round(store, monkeypatch):
    now = 20_000 * 86_400.0
    turned = {"first": "It depends.", "second": "Seven minutes."}
    for user, day, votes in (
        ("ada", -100, [vote("old", prompt="Old?")]),
        ("ada", -1, [vote("1"), vote("2", "tie", prompt="What?")]),
        ("bo", 0, [vote("3", "second", **turned), vote("4", "skip", prompt="Why?")]),
        ("cy", 0, [vote("5", "second"), vote("6", "both_bad", **turned)]),
    ):
        monkeypatch.setattr("time.time", lambda day=day: now + day * 86_400.0)
        store.add(user, votes)
    found = store.statistics(days=30)
    assert (found.users, found.votes) == (3, 7)
    assert [(day.day, dict(day.choices), day.users) for day in found.days] == [
        (19_999, {"first": 1, "tie": 1}, 1),
        (20_000, {"second": 2, "both_bad": 1, "skip": 1}, 2),
    ]
    # Only "How long?" was judged by several; ada and bo agree; cy changed their mind.
    told = {(each.choice, each.times) for each in found.judgements}
    assert len({each.pair for each in found.judgements}) == 1
    assert told in ({("first", 1), ("both_bad", 2)}, {("second", 1), ("both_bad", 2)})
    assert len(store.statistics(days=200).days) == 3
    assert store.statistics(raters=4).judgements == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "'id': is empty"),
        ({"id": "x" * 257}, "'id': has 257 letters"),
        ({"id": "a\nb"}, "'id': holds a control character"),
        ({"id": "a\0"}, "'id': holds a control character"),
        ({"id": "\ud800"}, "'id': holds a control character or half"),
        ({"prompt": " "}, "'prompt': is empty"),
        ({"prompt": []}, "'prompt': is an empty list"),
        ({"prompt": "a\0b"}, "'prompt': holds the character NUL"),
        ({"prompt": [{"role": "user", "content": "a\0"}]}, "'prompt': holds the character NUL"),
        ({"prompt": [{"role": "user", "content": "a", "name": "\\\0"}]}, "'prompt': holds the character NUL"),
        ({"prompt": [{"role": "user", "content": "a", "name": "\udfff"}]}, "'prompt': holds half a character"),
        ({"prompt": [{"role": "user", "content": "a", "name": math.nan}]}, "'prompt': message 0 has a field"),
        ({"prompt": [{"role": "boss", "content": "a"}]}, "'prompt': message 0 has role 'boss'"),
        ({"first": ""}, "'first': is empty"),
        ({"first": "\udc00"}, "'first': holds half a character"),
        ({"second": "x" * 1_000_001}, "'second': has 1000001 letters"),
        ({"second": "Seven minutes."}, "'second': equals first"),
        ({"choice": "left"}, "'choice': is none"),
        ({"choice": "tie", "strength": 1.0}, "'strength': given with choice 'tie'"),
        *(({"strength": bad}, "'strength': is no finite") for bad in (0.0, -1.0, math.nan, math.inf, 1e39, 1e-60)),
        ({"shown": "top"}, "'shown': is no side"),
        ({"asked": "\x1b[2J"}, "'asked': holds a control character"),
        *(({"latency": bad}, "'latency': is no finite") for bad in (-1.0, math.nan, math.inf)),
        *(({"time": bad}, "'time': is no time") for bad in (-1.0, math.nan, 1e11)),
    ],
    ids=lambda given: str(given)[:40].encode("ascii", "backslashreplace").decode(),
)
def test_what_cannot_be_held_or_trained_on_is_refused_in_words(changes, message):
    with pytest.raises(UserError) as error:
        checks.check_votes([vote("fine"), vote(**{"name": changes.get("id", "bad"), **changes})])
    assert f"vote 1, field {message}" in str(error.value)
    str(error.value).encode()


def test_nothing_of_a_call_with_a_bad_vote_is_stored(store):
    bad = [vote("1", strength=math.nan), vote("2"), vote("\0", first="\0")]
    with pytest.raises(UserError, match=r"3 faults"):
        store.add("ada", bad)
    with pytest.raises(UserError, match=r"pair 0, field 'first'"):
        store.add_pairs("pool", [Pair(id="1", prompt="Why?", first="\ud800", second="So.")])
    assert (store.users(), store.pools()) == ([], {})


@pytest.mark.parametrize("user", ["", "  ", "a\tb", "\x7f", "\u2028", "\ud83d", "x" * 257])
def test_no_user_has_an_id_that_cannot_be_held(store, user):
    for call in (store.revision, store.votes, store.remove_user, lambda name: store.add(name, [vote()])):
        with pytest.raises(UserError, match="user"):
            call(user)


def test_no_page_begins_where_no_database_can_look(store):
    for name in ("a\0", "\ud800", "x" * 257):
        for call in (lambda name: store.users(after=name), lambda name: store.pairs("pool", after=name)):
            with pytest.raises(UserError, match="after"):
                call(name)
    for number in (-1, 2**63, 10**5000):
        with pytest.raises(UserError, match="whole number from 0 on"):
            store.votes("ada", after=number)
        for call in (lambda n: store.users(limit=n), lambda n: store.pairs("p", limit=n)):
            with pytest.raises(UserError, match=r"limit: .* whole number from 1 on"):
                call(number)
    assert store.votes("ada", after=2**63 - 1) == []
    assert store.statistics(days=10**5000).votes == 0


def test_strange_but_lawful_texts_come_back(store):
    texts = [
        "\\u0000",
        "\uffff\U0010ffff",
        "e\u0301",
        "\u202e\u200b",
        "'; DROP TABLE votes; --",
        "\r\n\t\x01",
        "%s :x ?",
    ]
    votes = [vote(f"{text}'\"%:?" if text.isprintable() else str(n), first=text) for n, text in enumerate(texts)]
    votes += [vote(f"chat {n}", prompt=[{"role": "user", "content": text}]) for n, text in enumerate(texts)]
    store.add("Robert'); --", votes)
    assert [given(each) for each in store.votes("Robert'); --")] == votes


def test_a_thousand_votes_go_in_at_once(store):
    votes = [vote(str(number), first=f"Text {number}") for number in range(1200)]
    assert len(store.add("ada", votes).stored) == 1200
    assert store.add("ada", votes).stored == ()
    assert [each.id for each in store.votes("ada")] == [str(number) for number in range(1200)]
    assert [user for user, _ in store.export()] == ["ada"] * 1200
    assert store.remove_user("ada")[:2] == (1200, 1202)


def test_the_file_is_for_its_owner_alone(tmp_path):
    path = Path(tmp_path / "votes.db")
    with Store.open(f"sqlite:///{path}") as store:
        store.add("ada", [vote()])
        modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert modes == {0o600}
