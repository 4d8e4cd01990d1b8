"""`pref store`: what it prints and writes, what training reads of it, and how little it loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ballots import CHAT, vote

import pref_jax
from pref_jax import cli
from pref_jax.serve.store.records import Key, Pair
from pref_jax.serve.store.store import Store

ROOT = Path(__file__).resolve().parents[2]


def run(capsys, *argv):
    """Exit code, standard output, standard error."""
    code = cli.main(["store", *argv])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture
def filled(store, url):
    """The address of a store with votes of two users."""
    ties = vote("3", "tie", prompt="3?"), vote("4", "both_bad", shown="left"), vote("5", "skip", prompt="5?")
    store.add("ada", [vote("1", strength=2.0, time=1e9), vote("2", "second", prompt=CHAT), ties[0]])
    store.add("bo", ties[1:])
    store.add_pairs("pool", [Pair(id="p", prompt="Why?", first="So.", second="Because.")])
    store.use_model("lore-1", {"rank": 2})
    return url


def test_training_reads_what_is_exported(capsys, filled, tmp_path):
    path = tmp_path / "votes.jsonl"
    assert run(capsys, "export", filled, "--output", str(path))[:2] == (0, "")
    tables = pref_jax.read_votes(path, validation_fraction=0.0)
    assert tables.users["user_id"].to_pylist() == ["ada", "bo"]
    assert not tables.meta["ignored_fields"]
    found = tables.comparisons.to_pylist()
    texts = tables.responses["text"].to_pylist()
    said = [
        (row["user"], texts[row["chosen"]], texts[row["rejected"]], row["outcome"], row["strength"]) for row in found
    ]
    quick, slow = "Seven minutes.", "It depends."
    assert said == [
        (0, quick, slow, "preferred", 2.0),
        (0, slow, quick, "preferred", None),
        (0, quick, slow, "tie", None),
        (1, quick, slow, "both_bad", None),
        (1, quick, slow, "skipped", None),
    ]
    prompts = tables.responses["prompt"].to_pylist()
    assert [message["content"] for message in prompts[found[1]["chosen"]]] == [one["content"] for one in CHAT]
    assert found[0]["time"].timestamp() == 1e9
    assert np.all(np.diff([row["time"].timestamp() for row in found[1:]]) >= 0)


def test_provenance_is_exported_on_request(capsys, filled):
    _, out, _ = run(capsys, "export", filled, "--provenance")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["id"] for line in lines] == ["1", "2", "3", "4", "5"]
    assert [line.get("shown") for line in lines] == [None, None, None, "left", None]
    assert all("asked" not in line and line["received"] > 1e9 for line in lines)


def test_keys_are_made_listed_and_removed(capsys, filled):
    code, out, err = run(capsys, "keys", "add", filled, "page", "--right", "vote", "--right", "score", "--user", "ada")
    assert (code, err) == (0, "")
    with Store.open(filled) as store:
        assert store.key(out.strip()) == Key("page", frozenset({"vote", "score"}), "ada")
    assert run(capsys, "keys", "add", filled, "page", "--right", "vote")[0] == 2
    assert run(capsys, "keys", "add", filled, "new", "--right", "A B")[0] == 2
    run(capsys, "keys", "add", filled, "trainer", "--right", "score")
    assert run(capsys, "keys", "list", filled)[1] == "page     score, vote  ada\ntrainer  score        anyone\n"
    lines = run(capsys, "keys", "list", filled, "--json")[1].splitlines()
    assert json.loads(lines[1]) == {"name": "trainer", "rights": ["score"], "user": None}
    assert run(capsys, "keys", "remove", filled, "page") == (0, "", "removed page\n")
    code, _, err = run(capsys, "keys", "remove", filled, "page")
    assert (code, "no key has the name 'page'" in err) == (2, True)


def test_users_are_listed_and_removed(capsys, filled):
    assert run(capsys, "users", filled)[1] == "ada  3\nbo   2\n"
    code, out, err = run(capsys, "remove-user", filled, "ada", "eve")
    assert (code, out) == (0, "")
    # Of "How long?" and its answers the other user has votes as well.
    assert err.splitlines()[0] == "ada: removed 3 votes, 2 texts and 0 keys"
    assert err.splitlines()[1] == "eve: there was nothing to remove"
    assert run(capsys, "users", filled, "--json")[1] == '{"user": "bo", "votes": 2}\n'
    (line,) = run(capsys, "remove-user", filled, "bo", "--json")[1].splitlines()
    assert json.loads(line)["votes"] == 2
    assert run(capsys, "users", filled) == (0, "", "")


def test_what_is_in_it_is_told(capsys, filled):
    code, out, _ = run(capsys, "info", filled, "--json")
    assert code == 0
    assert json.loads(out) == {"users": 2, "votes": 5, "keys": 0, "pools": {"pool": 1}, "models": ["lore-1"]}
    out = run(capsys, "info", filled)[1]
    assert "pools   pool (1 pairs)\n" in out
    assert "models  lore-1\n" in out


def test_a_store_that_is_not_there_is_not_made(capsys, tmp_path):
    path = tmp_path / "typo.db"
    for command in (["info"], ["users"], ["export"], ["keys", "list"]):
        code, _, err = run(capsys, *command, str(path))
        assert (code, "no such file" in err) == (2, True)
    assert not path.exists()


def test_the_address_may_come_from_the_environment_and_nothing_heavy_is_loaded(tmp_path):
    path = tmp_path / "votes.db"
    with Store.open(str(path)) as store:
        store.add("ada", [vote()])
    heavy = ("jax", "transformers", "flax", "pandas", "scipy", "datasets", "alembic", "psycopg")
    code = f"""if True:
        import sys
        from pref_jax import cli
        cli.main(["store", "users"])
        print([module for module in {heavy} if module in sys.modules])"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREF_STORE": str(path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "ada  1\n[]\n"


def test_what_is_not_installed_is_told(monkeypatch, capsys, tmp_path):
    for module in [name for name in sys.modules if name.startswith("pref_jax.serve.store")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    code, _, err = run(capsys, "info", str(tmp_path / "votes.db"))
    assert code == 2
    assert "pip install 'pref-jax[serve]'" in err
