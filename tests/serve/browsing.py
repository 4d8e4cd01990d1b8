"""A headless Chromium, and what stands on the page where people vote."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from services import need_chromium

# Nothing outside this machine is asked for anything.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
# Seconds to wait for what the page does.
PATIENCE = 20


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A browser; its own event loop runs in this thread as long as it is open."""
    path = need_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


class Shown(NamedTuple):
    """The pair on display."""

    prompt: str
    left: str
    right: str


class VotePage:
    """The page of one user in a browser tab of its own; errors of its scripts fail the test."""

    def __init__(self, browser: Any, **options: Any):
        self.context = browser.new_context(accept_downloads=True, **options)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(1000 * PATIENCE)
        self.faults: list[str] = []
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.tab.on("dialog", lambda dialog: self.faults.append(f"a dialog: {dialog.message}"))
        self.tab.on("console", self._said)

    def _said(self, message: Any) -> None:
        # Requests that the service refuses, or that a test cuts off, are told there too.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.faults.append(message.text)

    def open(self, url: str) -> "VotePage":
        """Goes to the page, by a link that says who votes."""
        self.tab.goto(url)
        self.tab.wait_for_selector("#work:not([hidden]) #left:not(:empty)")
        return self

    def shown(self) -> Shown:
        """What is on display now."""
        return Shown(*(self.tab.text_content(f"#{name}") for name in ("prompt", "left", "right")))

    def press(self, key: str) -> None:
        """Presses a key once there is a pair to vote on, and waits for what it does to be said."""
        self.tab.wait_for_selector("#answers:not([hidden])")
        before = self.tab.inner_text("#progress-text")
        self.tab.keyboard.press(key)
        self.until(lambda: self.tab.inner_text("#progress-text") != before)

    def count(self) -> int:
        """Votes given, by the page."""
        found = re.match(r"(\d+) of", self.tab.inner_text("#progress-text"))
        assert found is not None
        return int(found[1])

    def settled(self) -> None:
        """Waits until nothing is on its way to the service."""
        waiting = "Object.keys(localStorage).some((name) => name.startsWith('pref-outbox'))"
        self.until(lambda: not self.tab.evaluate(waiting))

    def until(self, condition: Callable[[], Any]) -> None:
        """Waits for a condition; Playwright's own way needs eval, which the page forbids."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"not so after {PATIENCE} s: {self.tab.inner_text('body')[:2000]}"
            self.tab.wait_for_timeout(20)

    def close(self) -> None:
        """Closes the tab, and fails if its scripts had."""
        self.context.close()
        assert not self.faults, self.faults
