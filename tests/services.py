"""Servers that tests need: where one cannot run its tests are skipped, or, by PREF_REQUIRE_SERVICES=1, fail."""

import os
import shutil
from typing import NoReturn

import pytest

from experiments.benchmarks.private_postgres import binaries


def need_postgres() -> None:
    """Skips or fails where PostgreSQL is not installed."""
    if binaries() is None:
        _missing("there is no PostgreSQL server here: apt-get install postgresql")


def need_chromium() -> str:
    """Skips or fails where no Chromium is installed; where it is."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return found or _missing("there is no Chromium here: apt-get install chromium")


def _missing(reason: str) -> NoReturn:
    if os.environ.get("PREF_REQUIRE_SERVICES", "0") not in ("", "0"):
        pytest.fail(reason)
    pytest.skip(reason)
