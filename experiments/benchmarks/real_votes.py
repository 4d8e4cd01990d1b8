"""`pref train` with no option on public votes of real people: time, memory at the highest, accuracy on held-out votes.

    python -m experiments.benchmarks.real_votes results/real_votes.json ukp_convarg:DIR jester:DIR [--method=copl]

Each training is a process of its own. Rows of the file that are measured again are replaced.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pref_jax.files import read_json, write_json


def measure(votes: str, method: str) -> dict[str, Any]:
    """Trains in a new process; what it took, and the rows of its results.

    Raises:
      RuntimeError: with the last lines that it wrote, if it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        command = [sys.executable, "-m", "pref_jax.cli", "train", votes, "--method", method, "--out", str(out)]
        start = time.perf_counter()
        with (Path(folder) / "log").open("w+") as told:
            process = subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            told.seek(0)
            lines = told.read().splitlines()
        if process.returncode:
            raise RuntimeError("\n".join([" ".join(command), *lines[-20:]]))
        results = read_json(out / "results.json")
        source = re.split(":", votes, maxsplit=1)[0]
        return {
            "votes": source,
            "method": method,
            "seconds": round(time.perf_counter() - start, 1),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "peak_bytes": used.ru_maxrss * 1024,
            "load": os.getloadavg()[0],
            "told": [line.replace(votes, source) for line in lines if folder not in line and "\r" not in line],
            "rows": results["rows"],
            "versions": results["versions"],
        }


def main() -> None:
    """Measures what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("votes", nargs="+")
    parser.add_argument("--method", default="lore")
    given = parser.parse_args()
    rows = read_json(given.out) if given.out.exists() else []
    for votes in given.votes:
        row = measure(votes, given.method)
        key = (row["votes"], row["method"])
        rows = [old for old in rows if (old["votes"], old["method"]) != key] + [row]
        write_json(given.out, rows)
        print(f"{key[0]}, {key[1]}: {row['seconds']} s, {row['peak_bytes'] / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
