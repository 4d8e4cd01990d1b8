"""The pages in a headless Chromium: votes by keyboard, undo, reloads, lost connections, export, erasure, axe."""

import itertools
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import tiny
from browsing import VotePage, chromium
from serving import WORDS, lore

from experiments.benchmarks.served import running
from pref_jax.data.votes import read_votes
from pref_jax.serve.store.records import Pair, Vote
from pref_jax.serve.store.store import Store

KEYS = ("ArrowLeft", "2", "0", "b", "s", "1", "ArrowRight", "=")
MEANS = {"ArrowLeft": "left", "1": "left", "ArrowRight": "right", "2": "right", "0": "tie", "=": "tie"}
MEANS |= {"b": "both_bad", "s": "skipped"}
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> **no** [Markdown](javascript:alert(3))"


def pairs() -> list[Pair]:
    texts = [*WORDS, HOSTILE]
    return [
        Pair(id=f"{prompt} {a} {b}", prompt=f"What of {prompt}?", first=texts[a], second=texts[b])
        for prompt in range(3)
        for a, b in itertools.combinations(range(len(texts)), 2)
        if (a + b + prompt) % 3 == 0
    ]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Any:
    """A service that asks for keys: its address, and a key for each user and for the study."""
    folder = tmp_path_factory.mktemp("served")
    saved = lore(tiny.reward_model(folder / "decoder")).save(folder / "mine")
    users = ("ada b", "away", "gone", "again", "axe")
    with Store.open(f"{folder}/votes.db") as store:
        store.add_pairs("words", pairs())
        store.add_pairs("more words", pairs()[:5])
        keys = {user: store.add_key(user, ["vote", "score"], user) for user in users}
        keys["study"] = store.add_key("study", ["admin"])
        for person, one in itertools.product(range(7), range(24)):
            pair = pairs()[one % 20]
            choice = ("first", "second", "tie")[(person * one) % 7 % 3]
            texts = {"prompt": pair.prompt, "first": pair.first, "second": pair.second, "pair": pair.id}
            vote = Vote(id=f"{person} {one}", choice=choice, shown="left", latency=2.0 + person, **texts)
            store.add(f"person {person}", [vote])
    with running(saved, f"{folder}/votes.db", folder / "log", "--key-required") as server:
        yield server.url, keys


@pytest.fixture(scope="module")
def browser(served):
    del served
    with chromium() as found:
        yield found


def link(served: Any, user: str) -> str:
    return f"{served[0]}/#user={quote(user)}&key={served[1][user]}&pool=words"


def stored(served: Any, user: str) -> list[dict[str, Any]]:
    headers = {"authorization": f"Bearer {served[1][user]}"}
    answer = httpx.get(f"{served[0]}/v1/users/{quote(user)}/votes?limit=1000", headers=headers)
    return answer.json()["votes"] if answer.status_code == 200 else []


def said(line: dict[str, Any], shown: Any) -> str:
    """What a line of the export says of the sides that were on display."""
    if "outcome" in line:
        assert set(line["responses"]) == {shown.left, shown.right}
        return line["outcome"]
    assert {line["chosen"], line["rejected"]} == {shown.left, shown.right}
    return "left" if line["chosen"] == shown.left else "right"


def test_twenty_votes_by_keyboard_with_undo_and_reload(served, browser, tmp_path):
    page, clicked = VotePage(browser).open(link(served, "ada b")), []
    assert served[1]["ada b"] not in page.tab.url, "the key stays in no history"
    for number, key in enumerate(itertools.islice(itertools.cycle(KEYS), 20)):
        page.tab.wait_for_selector("#answers:not([hidden])")
        clicked.append((page.shown(), MEANS[key]))
        page.press(key)
        if number == 6:
            page.press("u")
            assert page.shown() == clicked[-1][0], "what was taken back is on display again, on the same sides"
            clicked[-1] = (page.shown(), "right")
            page.press("2")
        if number == 9:
            page.tab.wait_for_selector("#answers:not([hidden])")
            before = page.shown()
            page.tab.reload()
            page.tab.wait_for_selector("#work:not([hidden]) #left:not(:empty)")
            assert (page.shown(), page.count()) == (before, 10), "the same pair, and no vote lost or doubled"
        if number == 12:
            page.settled()
            page.tab.reload()
            page.tab.wait_for_selector("#work:not([hidden]) #left:not(:empty)")
            page.press("Control+z")
            assert page.shown() == clicked.pop()[0], "a vote of before the reload"
            clicked.append((page.shown(), "tie"))
            page.press("=")
    assert page.tab.inner_text("#progress-text").startswith("20 of 20. Thank you!")
    with page.tab.expect_download() as download:
        page.tab.click("#export")
    path = Path(tmp_path / "votes.jsonl")
    download.value.save_as(path)
    page.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [said(line, shown) for line, (shown, _) in zip(lines, clicked, strict=True)] == [one for _, one in clicked]
    assert [line["prompt"] for line in lines] == [shown.prompt for shown, _ in clicked]
    _provenance(lines)
    votes = stored(served, "ada b")
    assert [vote["id"] for vote in votes] == [line["id"] for line in lines]
    assert read_votes(path).num_users == 1, "pref train reads it"


def _provenance(lines: list[dict[str, Any]]) -> None:
    assert len({line["id"] for line in lines}) == 20
    assert all(line["user"] == "ada b" and line["latency"] >= 0 and line["page_version"] for line in lines)
    assert {line["shown"] for line in lines} == {"left", "right"}
    for tenth in (9, 19):
        assert lines[tenth]["asked"] == "repeat"
        assert lines[tenth]["pair"] in {line["pair"] for line in lines[:tenth]}
    rest = [line for place, line in enumerate(lines) if place not in (9, 19)]
    assert {line["asked"] for line in rest} == {"expected_information"}
    assert len({line["pair"] for line in rest}) == 18, "no pair twice but those that are repeated"


def test_a_lost_connection_loses_and_doubles_nothing(served, browser):
    page, lost, cut = VotePage(browser).open(link(served, "away")), [], []

    def on_the_way(route: Any) -> None:
        if cut:
            route.abort()
        elif not lost:
            # The service stores the vote, and its answer is lost.
            lost.append(route.fetch().status)
            route.abort()
        else:
            route.continue_()

    page.tab.route("**/votes", on_the_way)
    page.press("1")
    page.settled()
    assert lost == [200]
    assert len(stored(served, "away")) == 1, "sent twice, stored once"
    page.context.set_offline(True)
    for key in ("2", "1", "0"):
        page.press(key)
    assert "on the way" in page.tab.inner_text("#waiting")
    # One that was never sent is just gone; then the page is left before anything arrives.
    page.press("u")
    cut.append(True)
    page.context.set_offline(False)
    page.tab.reload()
    page.tab.wait_for_selector("#work:not([hidden]) #left:not(:empty)")
    assert page.count() == 3
    # The second was sent in vain, so that it must be sent and taken back.
    page.press("u")
    page.press("u")
    cut.clear()
    page.press("s")
    page.settled()
    assert page.count() == 2
    page.close()
    assert [vote["choice"] in ("first", "second") for vote in stored(served, "away")] == [True, False]
    assert stored(served, "away")[-1]["choice"] == "skip"


def test_what_is_believed_is_shown_follows_votes_and_is_erased(served, browser):
    page = VotePage(browser).open(link(served, "gone"))
    tab = page.tab
    tab.wait_for_selector("#ranking li")
    page.until(lambda: tab.inner_text("#taste-how").startswith("Nothing is known of you yet"))
    page.until(lambda: "should tell most about your taste" in tab.inner_text("#why"))
    for _ in range(6):
        # Whatever side it is on, so that what is believed does not depend on how sides were drawn.
        page.press("1" if page.shown().left < page.shown().right else "2")
    tab.wait_for_selector("#taste svg")
    page.until(lambda: tab.inner_text("#taste-how").startswith("From 6 votes"))
    # At most three, and none that is hardly different.
    page.until(lambda: 1 <= tab.locator("#contrasts article").count() <= 3)
    tab.click("#contrasts article >> nth=0 >> text=Vote on this pair")
    page.until(lambda: tab.inner_text("#why") == "You chose it yourself.")
    page.press("2")
    page.until(lambda: tab.inner_text("#taste-how").startswith("From 7 votes"))
    tab.click("#erase")
    tab.click("text=Keep everything")
    page.settled()
    assert len(stored(served, "gone")) == 7
    tab.click("#erase")
    tab.click("#erase-dialog button.danger")
    tab.wait_for_selector("#enter:not([hidden])")
    page.until(lambda: tab.inner_text("#trouble").startswith("Erased: 7 votes"))
    assert tab.evaluate("Object.keys(localStorage).filter((name) => name.includes('gone'))") == []
    page.close()
    assert stored(served, "gone") == [], "the key went too"
    users = httpx.get(f"{served[0]}/v1/users", headers={"authorization": f"Bearer {served[1]['study']}"}).json()[
        "users"
    ]
    assert "gone" not in {user["id"] for user in users}


def test_keys_can_be_turned_off_and_wait_for_nobody_who_types(served, browser):
    page = VotePage(browser).open(link(served, "again"))
    tab = page.tab
    tab.keyboard.press("?")
    tab.uncheck("#keys-on")
    tab.keyboard.press("1")
    tab.click("#help >> text=Close")
    tab.keyboard.press("1")
    tab.wait_for_timeout(100)
    assert page.count() == 0, "neither in the dialog, nor when turned off"
    tab.click("[data-choice=left]")
    tab.keyboard.press("?")
    assert not tab.is_visible("#help")
    tab.click("#help-open")
    tab.check("#keys-on")
    tab.click("#help >> text=Close")
    tab.focus("#ranking-prompt")
    tab.keyboard.press("2")
    assert page.count() == 1
    tab.select_option("#pool", "more words")
    page.until(lambda: tab.inner_text("#progress-text")[:6] in ("1 of 5", "1 of 6"))
    page.close()


def test_the_study_asks_for_a_key_and_shows_figures(served, browser):
    page = VotePage(browser)
    page.tab.goto(f"{served[0]}/study")
    page.tab.wait_for_selector("#enter:not([hidden])")
    page.tab.fill("#key", served[1]["axe"])
    page.tab.keyboard.press("Enter")
    page.until(lambda: "admin" in page.tab.inner_text("#trouble"))
    page.tab.fill("#key", served[1]["study"])
    page.tab.keyboard.press("Enter")
    page.tab.wait_for_selector("#people table")
    assert "No alarm" in page.tab.inner_text("#alarms")
    found = re.search(r"from (\d+) votes on (\d+) pairs", page.tab.inner_text("#agreement"))
    # Those that were there before, and what other tests left.
    assert found is not None
    assert int(found[1]) >= 140
    assert int(found[2]) >= 20
    assert "person 0" in page.tab.inner_text("#people")
    page.close()


@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(served, browser, scheme, width):
    from axe_playwright_python.sync_playwright import Axe

    def check(where: str) -> None:
        # Contrast is that of colours at rest.
        page.tab.wait_for_timeout(200)
        found = Axe().run(page.tab).response["violations"]
        bad = [
            (one["impact"], one["id"], [node["html"][:200] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert not bad, (where, bad)
        assert page.tab.evaluate("document.documentElement.scrollWidth") <= width, f"{where} scrolls sideways"

    # The checker puts a script of its own into the page, which the page forbids.
    page = VotePage(browser, color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True)
    page.tab.goto(f"{served[0]}/")
    page.tab.wait_for_selector("#enter:not([hidden])")
    check("who are you")
    page.open(link(served, "axe"))
    for key in ("1", "2", "0"):
        page.press(key)
    page.tab.wait_for_selector("#taste svg")
    for details in page.tab.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    check("voting")
    page.tab.keyboard.press("?")
    check("help")
    page.tab.keyboard.press("Escape")
    page.tab.click("#erase")
    check("erasing")
    page.tab.goto(f"{served[0]}/study#key={served[1]['study']}")
    page.tab.wait_for_selector("#people table")
    page.tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    check("the study")
    page.close()
