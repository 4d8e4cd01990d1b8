"""Servers that tests need: where one cannot run its tests are skipped, or, by PREF_REQUIRE_SERVICES=1, fail."""

import os

import pytest

from experiments.benchmarks.private_postgres import binaries


def need_postgres() -> None:
    """Skips or fails where PostgreSQL is not installed."""
    if binaries() is None:
        reason = "there is no PostgreSQL server here: apt-get install postgresql"
        if os.environ.get("PREF_REQUIRE_SERVICES", "0") not in ("", "0"):
            pytest.fail(reason)
        pytest.skip(reason)
