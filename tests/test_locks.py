"""One process at a time in a folder: who is there, who has died, who is the same."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from pref_jax.errors import UserError
from pref_jax.files import read_json
from pref_jax.locks import hold

ROOT = Path(__file__).parents[1]
HOLDER = """
import sys, time
from pref_jax.locks import hold
with hold(sys.argv[1], beside=sys.argv[2] == "beside"):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


@pytest.fixture
def other():
    """Starts a process that holds a folder for some seconds; returns it once it does."""
    every: list[subprocess.Popen] = []

    def start(folder: Path, where: str = "inside", seconds: float = 60) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLDER, str(folder), where, str(seconds)]
        every.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert every[-1].stdout
        assert every[-1].stdout.readline() == "held\n"
        return every[-1]

    yield start
    for process in every:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()


@pytest.mark.parametrize("where", ["inside", "beside"])
def test_a_second_process_is_told_who_is_there_and_a_dead_one_is_no_hindrance(tmp_path, other, where):
    folder = tmp_path / "run"
    first = other(folder, where)
    with (
        pytest.raises(
            UserError,
            match=rf"run is in use by process {first.pid} on \S+ since 2\d{{3}}-\S+ \(\S*python -c .* {where} 60\)",
        ),
        hold(folder, beside=where == "beside"),
    ):
        pass
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    about = folder / ".lock.json" if where == "inside" else tmp_path / ".run.lock.json"
    assert read_json(about)["pid"] == first.pid, "it died without a word"
    with hold(folder, beside=where == "beside"):
        assert read_json(about)["pid"] == os.getpid()
    assert not list(tmp_path.rglob("*lock*"))


def test_one_who_waits_comes_next(tmp_path, other, capsys):
    first, began = other(tmp_path, seconds=1.5), time.monotonic()
    with hold(tmp_path, wait=60.0):
        assert time.monotonic() - began < 50
        assert read_json(tmp_path / ".lock.json")["pid"] == os.getpid()
    told = capsys.readouterr().err
    assert re.search(rf"in use by process {first.pid} .*; waiting", told)


def test_a_process_does_not_lock_itself_out(tmp_path, other):
    with hold(tmp_path):
        with hold(tmp_path), hold(tmp_path / "below"):
            pass
        assert (tmp_path / ".lock").exists(), "still held"
    other(tmp_path)  # nothing is held any more


def test_a_failure_lets_go(tmp_path, other):
    with pytest.raises(ValueError, match="mine"), hold(tmp_path):
        raise ValueError("mine")
    assert not list(tmp_path.iterdir())
    other(tmp_path)


def test_the_others_of_a_job_are_let_in(tmp_path, other, monkeypatch):
    other(tmp_path)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with hold(tmp_path):
        pass
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with pytest.raises(UserError, match="in use"), hold(tmp_path):
        pass


def test_damaged_words_of_the_holder_are_no_traceback(tmp_path, other):
    other(tmp_path)
    for words in ("[]", "{", "{}"):
        (tmp_path / ".lock.json").write_text(words)
        with pytest.raises(UserError, match="in use by another process; wait"), hold(tmp_path):
            pass
