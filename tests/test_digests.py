"""What work was made from: changed files are refused by name, the same ones elsewhere are the same."""

import os
import shutil
from pathlib import Path

import pytest

from pref_jax import digests
from pref_jax.digests import check_inputs
from pref_jax.errors import UserError


@pytest.fixture
def inputs(tmp_path) -> dict[str, Path]:
    (tmp_path / "votes.jsonl").write_text("one\n")
    for name in ("config.json", "model.safetensors", "README.md", "optimizer.bin"):
        (tmp_path / "base").mkdir(exist_ok=True)
        (tmp_path / "base" / name).write_text(name)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.csv").write_text("a")
    return {"votes": tmp_path / "votes.jsonl", "base": tmp_path / "base", "tables": tmp_path / "tables"}


@pytest.fixture
def work(tmp_path, inputs) -> Path:
    """A workdir with work made from the inputs."""
    workdir = tmp_path / "work"
    check_inputs(workdir, inputs)
    (workdir / "model").mkdir()
    (workdir / "model" / "weights").touch()
    return workdir


@pytest.mark.parametrize(
    ("file", "words", "named"),
    [
        ("votes.jsonl", "two\n", r"votes\.jsonl is not the file that \S+work was made from; use a new workdir, or put"),
        ("base/model.safetensors", "other", r"base/model\.safetensors is not the file"),
        ("base/config.json", None, r"base/config\.json \(gone\) is not the file"),
        ("base/more.safetensors", "", r"more\.safetensors \(new\) is not the file"),
        ("tables/b.csv", "b", r"b\.csv \(new\) is not the file"),
    ],
)
def test_a_changed_file_is_refused_by_name(tmp_path, inputs, work, file, words, named):
    path = tmp_path / file
    before = path.read_text() if path.exists() else None
    path.unlink() if words is None else path.write_text(words)
    for _ in range(2):
        with pytest.raises(UserError, match=named):
            check_inputs(work, inputs)
    path.unlink(missing_ok=True)
    if before is not None:
        path.write_text(before)
    check_inputs(work, inputs)


def test_several_are_one_message(tmp_path, inputs, work):
    for name in "abcdefg":
        (tmp_path / "tables" / f"{name}.csv").write_text("new")
    with pytest.raises(UserError, match=r"and 2 more are not the files that .* put the old files back"):
        check_inputs(work, inputs)


def test_the_same_size_and_time_do_not_hide_a_change(tmp_path, inputs, work):
    file = tmp_path / "votes.jsonl"
    stat = file.stat()
    file.write_text("two\n")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match=r"votes\.jsonl"):
        check_inputs(work, inputs)


def test_what_says_the_same_is_the_same(tmp_path, inputs, work):
    (tmp_path / "votes.jsonl").touch()
    (tmp_path / "base" / "README.md").write_text("for people")
    (tmp_path / "base" / "optimizer.bin").write_text("no part of what is read")
    (tmp_path / "tables" / ".DS_Store").write_text("nobody's")
    check_inputs(work, inputs)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = {name: Path(shutil.move(path, elsewhere / path.name)) for name, path in inputs.items()}
    work = Path(shutil.move(work, elsewhere / "work"))
    check_inputs(work, moved)
    moved["votes"].unlink()
    check_inputs(work, moved)  # what was made from it is still there


def test_nothing_is_read_twice(inputs, work, monkeypatch):
    read = []
    monkeypatch.setattr(digests, "digest", lambda path: read.append(path) or "other")
    written = (work / digests.FILE).stat().st_mtime_ns
    check_inputs(work, inputs)
    assert read == []
    assert (work / digests.FILE).stat().st_mtime_ns == written


def test_before_there_is_work_files_may_be_mended(tmp_path, inputs):
    workdir = tmp_path / "work"
    check_inputs(workdir, inputs)
    (workdir / "features").mkdir()  # empty
    (tmp_path / "votes.jsonl").write_text("mended\n")
    check_inputs(workdir, inputs)
    (workdir / "features" / "some").touch()
    check_inputs(workdir, inputs)
    (tmp_path / "votes.jsonl").write_text("mended again\n")
    check_inputs(workdir, inputs, made={"votes": False, "base": True, "tables": True})
    (tmp_path / "base" / "config.json").write_text("other")
    with pytest.raises(UserError, match="config"):
        check_inputs(workdir, inputs, made={"votes": False, "base": True, "tables": True})


def test_a_workdir_inside_an_input_is_no_part_of_it(tmp_path):
    (tmp_path / "votes.csv").write_text("a")
    workdir = tmp_path / "run"
    for _ in range(2):
        check_inputs(workdir, {"votes": tmp_path})
        (workdir / "data").mkdir(exist_ok=True)
        (workdir / "data" / "table").write_text("b")
    (tmp_path / "votes.csv").write_text("c")
    with pytest.raises(UserError, match=r"votes\.csv"):
        check_inputs(workdir, {"votes": tmp_path})
