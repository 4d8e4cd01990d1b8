"""Jester: hand-written files in the public schema with their traps, and the real ones if they are at hand."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pref_jax.data import sources
from pref_jax.data.sources import jester
from pref_jax.errors import UserError

SHARED = Path(os.environ.get("PREF_JAX_JESTER", Path(__file__).parents[3] / "shared" / "data" / "jester"))
NO_TEST = {"test_fraction": 0, "validation_fraction": 0, "unseen_fraction": 0}
PAGE = """<HTML><TITLE>Joke {number} of 25</TITLE><BODY><FONT> <BR>
<!--begin of joke -->
{text}
<!--end of joke -->
</FONT>Rate it!</BODY></HTML>"""
TEXTS = {
    1: "Why do <i>spoons</i> sing?<P>Because&nbsp;forks &lt; knives\ncannot.",
    2: "A duck<br>walks <br/> in.",
    3: "",
    4: "One &amp; only.",
}


def line(ratings: dict[int, float], count: int | None = None) -> str:
    cells = [f"{ratings.get(joke, 99)}" for joke in range(1, jester.JOKES + 1)]
    return ",".join([str(len(ratings) if count is None else count), *cells])


ROWS = [
    line({1: 3.5, 2: -2.0, 3: 9.0, 4: 3.5}),
    line({1: -9.95, 2: 10.0, 4: 0}),
    line({4: 1.0, 2: 0.5}, count=5),
    line({3: 1.0}),
    line({}),
]


def put(folder: Path, name: str, text: str | bytes, *, inside: str = "") -> None:
    if not inside:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return
    with zipfile.ZipFile(folder / name, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(inside, text)


@pytest.fixture
def folder(tmp_path) -> Path:
    put(tmp_path, "jester-data-1.zip", "\n".join(ROWS) + "\n", inside="jester-data-1.csv")
    for number, text in TEXTS.items():
        page = PAGE.format(number=number, text=text)
        put(tmp_path, "jester_dataset_1_joke_texts.zip", page, inside=f"jokes/init{number}.html")
    put(tmp_path, "jester_dataset_1_joke_texts.zip", b"\x00\x05\x16", inside="__MACOSX/jokes/._init2.html")
    put(tmp_path, "jester_dataset_1_joke_texts.zip", b"\x00", inside="jokes/.DS_Store")
    return tmp_path


def test_ratings_and_pairs_of_them(folder):
    data = jester.read(folder, **NO_TEST)
    assert data.users["user_id"].to_pylist() == ["1-1", "1-2", "1-3"]
    assert data.responses["response_id"].to_pylist() == ["joke 1", "joke 2", "joke 4"]
    assert data.responses["text"].to_pylist() == [
        "Why do spoons sing?\n\nBecause forks < knives cannot.",
        "A duck\nwalks\nin.",
        "One & only.",
    ]
    assert {message["content"] for message in data.responses["prompt"][0].as_py()} == {jester.PROMPT}
    rated = [(row["user"], row["response"], row["rating"]) for row in data.ratings.to_pylist()]
    expected = [(0, 0, 3.5), (0, 1, -2), (0, 2, 3.5), (1, 0, -9.95), (1, 1, 10), (1, 2, 0), (2, 1, 0.5), (2, 2, 1)]
    assert rated == [(u, r, np.float32(value)) for u, r, value in expected]
    table = [(r["user"], r["chosen"], r["rejected"], r["outcome"], r["strength"]) for r in data.comparisons.to_pylist()]
    preferred = sorted(row for row in table if row[3] == "preferred")
    assert [row[:3] for row in preferred] == [(0, 0, 1), (0, 2, 1), (1, 1, 0), (1, 1, 2), (1, 2, 0), (2, 2, 1)]
    np.testing.assert_allclose([row[4] for row in preferred], [5.5, 5.5, 19.95, 10, 9.95, 0.5], rtol=1e-6)
    assert [row for row in table if row[3] == "tie"] in ([(0, 0, 2, "tie", None)], [(0, 2, 0, "tie", None)])
    assert all(data.comparisons["rated"].to_pylist())


def test_traps_are_counted(folder):
    meta = jester.read(folder, **NO_TEST).meta
    assert meta["in_source"] == {
        "files": 1,
        "users": 5,
        "ratings": 10,
        "unrated": 490,
        "rows_that_miscount_their_ratings": 1,
        "users_of_one_rating_throughout": 1,
    }
    assert {name: count for name, count in meta["filtered"].items() if count} == {"missing_text": 2}


def test_close_ratings_and_users_over_the_limit(folder):
    close = jester.read(folder, min_difference=6, **NO_TEST)
    assert sorted(close.comparisons["strength"].to_numpy().round(2)) == [9.95, 10.0, 19.95]
    assert close.meta["filtered"]["pairs_under_min_difference"] == 4
    few = jester.read(folder, users=2, seed=3, **NO_TEST)
    assert few.meta["filtered"]["users_over_the_limit"] == 3
    assert few.num_users <= 2
    kept = few.meta["filtered"]["ratings_of_users_over_the_limit"] + few.meta["filtered"]["missing_text"]
    assert few.ratings.num_rows == 10 - kept
    assert jester.read(folder, users=2, seed=3, **NO_TEST).ratings.equals(few.ratings)


def test_unpacked_files_read_the_same_and_more_files_are_more_users(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("unpacked")
    put(other, "jester-data-1.csv", "\r\n".join(ROWS))
    put(other, "jester-data-3.csv", ROWS[1])
    (other / "jokes").mkdir()
    for number, text in TEXTS.items():
        put(other / "jokes", f"init{number}.html", PAGE.format(number=number, text=text))
    data, packed = (jester.read(where, **NO_TEST) for where in (other, folder))
    assert data.users["user_id"].to_pylist() == ["1-1", "1-2", "1-3", "3-1"]
    assert data.responses.equals(packed.responses)
    assert data.ratings.slice(0, packed.ratings.num_rows).equals(packed.ratings)


def test_no_rating_of_a_test_pair_is_known(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        line({joke: round(rng.uniform(-10, 10), 2) for joke in range(1, 31) if rng.random() < 0.8}) for _ in range(40)
    ]
    put(tmp_path, "jester-data-1.csv", "\n".join(rows))
    for number in range(1, 31):
        put(tmp_path, f"init{number}.html", PAGE.format(number=number, text=f"Joke of {number} words."))
    data = jester.read(tmp_path, seed=1)
    ratings = data.ratings.to_pandas()
    known = set(map(tuple, ratings[ratings["split"] != "test"][["user", "response"]].to_numpy()))
    test = data.pairs("test")
    assert len(test.user) > 50
    for side in (test.chosen, test.rejected):
        assert not known & set(zip(test.user.tolist(), side.tolist(), strict=True))
    assert not data.seen.all()
    assert len(data.pairs("validation").user)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (line({1: 10.5}), "line 1: a rating that is not -10 to 10 or 99"),
        (line({1: 1.0}).replace(",99", ",", 1), "not a table of a count and 100 ratings"),
        (line({1: 1.0}) + ",3", "not a table of a count and 100 ratings"),
        (line({1: 1.0}).replace("1.0", "funny"), "funny"),
        ("", "not a table"),
    ],
)
def test_damaged_ratings_are_named(folder, text, message):
    (folder / "jester-data-1.zip").unlink()
    put(folder, "jester-data-1.csv", text)
    with pytest.raises(UserError, match=message):
        jester.read(folder)


def test_missing_and_damaged_files(folder, tmp_path_factory):
    raw = (folder / "jester-data-1.zip").read_bytes()
    (folder / "jester-data-1.zip").write_bytes(raw[:-30])
    with pytest.raises(UserError, match=r"jester-data-1\.zip: cannot be read"):
        jester.read(folder)
    (folder / "jester-data-1.zip").unlink()
    with pytest.raises(UserError, match=r"no jester-data-1\.zip"):
        jester.read(folder)
    put(folder, "jester-data-1.zip", b"\xd0\xcf\x11\xe0", inside="jester-data-1.xls")
    with pytest.raises(UserError, match="is a spreadsheet; save it as CSV"):
        jester.read(folder)
    with pytest.raises(UserError, match=r"no init1\.html"):
        jester.read(tmp_path_factory.mktemp("empty"))
    with pytest.raises(UserError, match=r"(?s)min_difference.*per_response.*users"):
        jester.read(folder, min_difference=-1, users=0, per_response=0)


def test_an_archive_without_ratings_and_one_beside_its_table(folder):
    (folder / "jester-data-1.zip").unlink()
    put(folder, "jester-data-1.zip", "hello", inside="readme.txt")
    with pytest.raises(UserError, match=r"holds readme\.txt, not one table of ratings"):
        jester.read(folder)
    put(folder, "jester-data-1.csv", ROWS[0])
    with pytest.raises(UserError, match=r"keep one of each number"):
        jester.read(folder)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real ratings are not at hand; set PREF_JAX_JESTER to their folder")
def test_the_real_ratings_are_read_whole():
    found, texts = jester.read_ratings(SHARED), jester.joke_texts(SHARED)
    assert found.counts == {
        "files": 1,
        "users": 24_983,
        "ratings": 1_810_455,
        "unrated": 687_845,
        "rows_that_miscount_their_ratings": 0,
        "users_of_one_rating_throughout": 4,
    }
    assert sorted(texts) == list(range(1, 101))
    assert all(texts.values())
    assert len(set(texts.values())) == 100
    assert not any(mark in text for text in texts.values() for mark in ("<", "&nbsp", "<!--"))
    data = sources.read("jester", path=SHARED, seed=0, users=300)
    assert data.meta["filtered"]["users_over_the_limit"] == 24_683
    assert data.num_users == 300
    assert 0.1 < len(data.pairs("test").user) / data.comparisons.num_rows < 0.3
