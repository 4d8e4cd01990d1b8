"""Known holes fail the audit; a registry that does not answer, or knows nothing, does not, but is never passed over."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import audit

HOLE = {"id": "PYSEC-2023-74", "fix_versions": ["2.31.0"], "aliases": ["CVE-2023-32681"], "description": "leaks"}
# As pip-audit 2 writes them.
SOUND = {"name": "numpy", "version": "2.4.6", "vulns": []}
HOLED = {"name": "requests", "version": "2.30.0", "vulns": [HOLE]}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0)"}
LOST = (
    "Traceback (most recent call last):\n...\nrequests.exceptions.ConnectionError: HTTPSConnectionPool(host='pypi.org')"
)


def answer(*packages: Any, errors: str = "") -> subprocess.CompletedProcess[str]:
    told = json.dumps({"dependencies": packages, "fixes": []}) if packages else ""
    return subprocess.CompletedProcess([], 1, told, errors)


@pytest.mark.parametrize(
    ("pypi", "osv", "code", "said"),
    [
        (answer(SOUND, SKIPPED), None, 0, ("pypi: 1 packages checked, 0 known", "it does not know them: torch")),
        (answer(SOUND, HOLED), None, 1, ("requests 2.30.0: PYSEC-2023-74, CVE-2023-32681; fixed in 2.31.0",)),
        (answer(SKIPPED), answer(HOLED), 1, ("pypi: knows none", "osv: 1 packages checked, 1 known")),
        (answer(errors=LOST), answer(SOUND), 0, ("pypi: cannot be reached", "osv: 1 packages checked")),
        (answer(errors=LOST), answer(SKIPPED), 0, ("WARNING: nothing was checked",)),
    ],
)  # fmt: skip
def test_what_is_found_decides(capsys, pypi, osv, code, said):
    assert audit.audit({"pypi": pypi, "osv": osv}.__getitem__) == code
    told = "".join(capsys.readouterr())
    assert all(words in told for words in said)
    assert ("WARNING" in told) == any("WARNING" in words for words in said)


def test_a_failure_of_its_own_is_told():
    with pytest.raises(RuntimeError, match="no such option"):
        audit.read(answer(errors="error: no such option --x"))


def test_without_a_network_it_warns(tmp_path):
    # The discard port of this machine: nobody is there.
    away = {f"{kind}_PROXY": "http://127.0.0.1:9" for kind in ("HTTPS", "HTTP", "ALL")}
    away |= {name.lower(): value for name, value in away.items()}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.audit", f"--cache-dir={tmp_path}"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **away, "NO_PROXY": "", "no_proxy": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "pypi: cannot be reached" in done.stderr
    assert "WARNING: nothing was checked for known holes" in done.stderr
