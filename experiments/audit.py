"""Asks for known security holes in what is installed: pip-audit, and a plain warning where no registry answers.

    python -m experiments.audit
    python -m experiments.audit --ignore-vuln=CVE-2026-1234

Options are handed to pip-audit. The exit code is 1 if a package has a known hole, and 0 if none has or nobody could
say: pip-audit itself counts packages of which a mirror knows nothing as skipped, and says that all is well.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Services of pip-audit, asked in turn until one answers.
SERVICES = ("pypi", "osv")
# In what pip-audit writes when it could not reach one.
UNREACHED = ("ConnectionError", "Could not connect", "Timeout", "ServiceError", "SSLError", "ProxyError")


class Told(NamedTuple):
    """What a service said.

    Attributes:
      holes: lines for people.
      checked: packages that it knows.
      unknown: names of those that it does not.
    """

    holes: list[str]
    checked: int
    unknown: list[str]


def read(answer: subprocess.CompletedProcess[str]) -> Told | None:
    """What pip-audit found; None if its service could not be reached.

    Raises:
      RuntimeError: if it failed otherwise.
    """
    try:
        packages: list[dict[str, Any]] = json.loads(answer.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        if any(word in answer.stderr for word in UNREACHED):
            return None
        raise RuntimeError(f"pip-audit failed:\n{answer.stderr[-3000:]}") from None
    known = [one for one in packages if "skip_reason" not in one]
    holes = [_line(one, hole) for one in known for hole in one["vulns"]]
    return Told(holes, len(known), [one["name"] for one in packages if "skip_reason" in one])


def _line(package: dict[str, Any], hole: dict[str, Any]) -> str:
    names = ", ".join([hole["id"], *hole.get("aliases", [])])
    fixed = ", ".join(hole["fix_versions"]) or "no version yet"
    return f"{package['name']} {package['version']}: {names}; fixed in {fixed}"


def audit(run: Callable[[str], subprocess.CompletedProcess[str]], services: Sequence[str] = SERVICES) -> int:
    """Asks services in turn until one knows the packages; the exit code.

    Args:
      run: runs pip-audit with a service.
      services: by pip-audit's names.
    """
    for service in services:
        found = read(run(service))
        if found is None or not found.checked:
            why = "cannot be reached" if found is None else "knows none of the packages, as a mirror does"
            print(f"{service}: {why}", file=sys.stderr)
            continue
        if found.unknown:
            print(f"{service}: not checked, as it does not know them: {', '.join(found.unknown)}", file=sys.stderr)
        for line in found.holes:
            print(line)
        print(f"{service}: {found.checked} packages checked, {len(found.holes)} known holes")
        return int(bool(found.holes))
    print("WARNING: nothing was checked for known holes, as no registry answers from here", file=sys.stderr)
    return 0


def main() -> None:
    """Audits the environment of this Python."""
    fixed = ["--format=json", "--progress-spinner=off", "--skip-editable", "--timeout=30"]

    def run(service: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pip_audit", f"--vulnerability-service={service}", *fixed, *sys.argv[1:]]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    sys.exit(audit(run))


if __name__ == "__main__":
    main()
