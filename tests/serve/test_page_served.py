"""What the pages are made of, by what headers and addresses; and what they ask the service for beside votes."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny
from serving import WORDS, client_of, lore, texts_of, vote

from pref_jax.lm.text_model import as_responses
from pref_jax.serve import pages
from pref_jax.serve.store.store import Store

POOL = [
    {"id": f"{n}", "prompt": f"What of {n % 3}?", "first": WORDS[n % 7], "second": WORDS[(n + 2) % 8]} for n in range(9)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return lore(tiny.reward_model(tmp_path_factory.mktemp("base") / "decoder"))


@pytest.fixture(scope="module")
def client(model, tmp_path_factory):
    with client_of(model, Store.open(f"{tmp_path_factory.mktemp('store')}/v.db")) as client:
        assert client.post("/v1/pools/some", json={"pairs": POOL}).status_code == 200
        yield client


def test_pages_come_with_a_strict_policy_and_their_parts_for_good(client):
    for path in ("/", "/study"):
        page = client.get(path)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        policy = page.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["cache-control"] == "no-cache"
        parts = re.findall(r'(?:src|href)="(/page/[^"]+)"', page.text)
        assert len(parts) == 3
        _follow(client, parts)


def _follow(client, parts):
    """Every part, and every script that a script imports."""
    seen, media = set(), {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
    while parts:
        path = parts.pop()
        part = client.get(path)
        assert part.status_code == 200, path
        assert "immutable" in part.headers["cache-control"]
        assert part.headers["content-type"] == media.get(path.rpartition(".")[2], "image/svg+xml")
        names = re.findall(r"from '\./([\w.]+)'", part.text) if path.endswith(".js") else []
        new = {path.rpartition("/")[0] + "/" + name for name in names} - seen
        seen |= new
        parts += new


def test_nothing_but_the_folders_files_is_served(client):
    version = pages.files().version
    assert client.get(f"/page/{version}/app.js").status_code == 200
    assert client.head("/").status_code == 200
    for name in ("index.html", "pages.py", "..%2fpages.py", "%2e%2e/pages.py", "..%5cpages.py", "", "app.js%00", "."):
        assert client.get(f"/page/{version}/{name}").status_code == 404, name
    assert client.get(f"/page/{'0' * 16}/app.js").status_code == 404, "of another version"
    assert client.post("/").status_code == 405
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    assert not {"/", "/study"} & set(client.get("/openapi.json").json()["paths"])


def test_the_version_is_a_digest_of_all_files(tmp_path, monkeypatch):
    before = pages.files()
    copied = tmp_path / "page"
    shutil.copytree(pages.FOLDER, copied)
    monkeypatch.setattr(pages, "FOLDER", copied)
    same = pages.files.__wrapped__()
    assert same == before
    (copied / "dom.js").write_text((copied / "dom.js").read_text() + "\n")
    changed = pages.files.__wrapped__()
    assert changed.version != before.version
    assert changed.version.encode() in changed.files["index.html"]


def test_scripts_make_no_html_of_texts_and_ask_nobody_else():
    for name, data in pages.files().files.items():
        text = data.decode()
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert way not in text, f"{name}: {way}"
        addresses = set(re.findall(r"https?://[\w./]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not addresses, f"{name}: {addresses}"
        if name.endswith(".html"):
            assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", text), f"{name}: inline"
        if name.endswith(".js"):
            assert text.startswith("// "), f"{name}: says what it is for"


def test_scripts_can_be_parsed(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node here")
    for path in sorted(pages.FOLDER.glob("*.js")):
        module = tmp_path / f"{path.stem}.mjs"
        shutil.copy(path, module)
        done = subprocess.run([node, "--check", module], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_pages_need_no_key_and_what_they_show_does(model, tmp_path):
    store = Store.open(f"{tmp_path}/v.db")
    key = store.add_key("ada's", ["vote"], "ada")
    with client_of(model, store, keys=True) as client:
        assert client.get("/").status_code == client.get("/study").status_code == 200
        mine = {"authorization": f"Bearer {key}"}
        assert client.get("/v1/users/ada/agreement").status_code == 401
        assert client.get("/v1/users/ada/agreement", headers=mine).status_code == 200
        assert client.get("/v1/users/cy/agreement", headers=mine).status_code == 404
        assert client.post("/v1/users/cy/taste", headers=mine, json={"pool": "some"}).status_code == 404
        assert client.get("/v1/study", headers=mine).status_code == 403


def test_taste_is_told_by_the_pairs_of_greatest_difference(client, model):
    found = client.post("/v1/users/ada/taste", json={"pool": "some", "count": 50}).json()
    assert found["considered"] == len(POOL)

    def chance(user, pair):
        first, second = model.score(user, pair["prompt"], [pair["first"], pair["second"]]).astype(np.float64)
        return 1 / (1 + np.exp(second - first))

    gaps = {}
    for pair in POOL:
        gap = abs(chance("ada", pair) - chance(None, pair))
        gaps[pair["prompt"]] = max(gaps.get(pair["prompt"], 0), gap)
    assert [pair["prompt"] for pair in found["pairs"]] == sorted(gaps, key=lambda prompt: -gaps[prompt])
    for pair in found["pairs"]:
        assert pair["own"] == pytest.approx(chance("ada", pair), abs=1e-6)
        assert pair["everyone"] == pytest.approx(chance(None, pair), abs=1e-6)
        assert pair["low"] < pair["own"] < pair["high"]
        assert abs(pair["own"] - pair["everyone"]) == pytest.approx(gaps[pair["prompt"]], abs=1e-6)
    few = client.post("/v1/users/ada/taste", json={"pool": "some", "count": 1}).json()["pairs"]
    assert few == found["pairs"][:1]
    assert client.post("/v1/users/nobody/taste", json={"pool": "some"}).status_code == 404
    assert client.post("/v1/users/ada/taste", json={"pool": "none"}).status_code == 404


def test_deviations_of_margins_are_those_of_rewards_of_differences(model):
    rows = as_responses(["What?"] * 4, list(WORDS[:4]))
    read = model.read(rows)
    for user in ("ada", None):
        found = model.margin_deviations(user, read[:2], read[2:])
        want = model.rewards_of([user] * 2, read[:2] - read[2:], uncertainty=True).deviation
        np.testing.assert_allclose(found, want, rtol=1e-5)
    shared = lore(Path(texts_of(model).name), kind="shared")
    assert shared.margin_deviations("ada", read[:2, :1], read[2:, :1]) is None


def test_agreement_and_study_follow_votes(client):
    for user, choices in {"eve": ("first", "first", "tie"), "x": ("first",), "y": ("first",), "z": ("second",)}.items():
        for place, choice in enumerate(choices):
            sent = vote(3, choice, id=f"{user} {place}", shown="left", latency=2.0)
            assert client.post(f"/v1/users/{user}/votes", json=sent).status_code == 200
    found = client.get("/v1/users/eve/agreement").json()
    assert (found["itself"]["count"], found["itself"]["of"]) == (1, 2)
    assert (found["others"]["count"], found["others"]["of"], found["at_least"]) == (0, 1, 3)
    assert client.get("/v1/users/nobody/agreement").status_code == 404
    figures = client.get("/v1/study").json()["figures"]
    assert figures["votes"] == 6
    assert figures["choices"]["tie"]["count"] == 1
    assert (figures["left"]["count"], figures["left"]["of"], figures["median_seconds"]) == (4, 5, 2.0)
    assert figures["alpha"]["units"] == 1
