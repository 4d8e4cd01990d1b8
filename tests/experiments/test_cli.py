"""Launching: what a user mistypes is told in one message with exit code 2."""

import dataclasses
from typing import Any

import pytest
from absl import flags
from ml_collections import ConfigDict

from experiments.runner import cli
from pref_jax.errors import UserError

CONFIG = """
from ml_collections import ConfigDict
def get_config(variant=""):
    return ConfigDict({"rate": 0.5, "sizes": (1, 2), "model": {"width": 8, "variant": variant}})
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return path


def _launch(*args: str):
    got = []
    cli.launch(lambda config, workdir: got.append((config, workdir)), "doc", argv=["prog", *args])
    return got[0]


def test_fields_are_overridden_and_variants_chosen(config_file, tmp_path):
    config, workdir = _launch(
        f"--config={config_file}:big", "--config.rate=2.5", "--config.sizes=(3,)", f"--workdir={tmp_path}/w"
    )
    assert config.to_dict() == {"rate": 2.5, "sizes": (3,), "model": {"width": 8, "variant": "big"}}
    assert workdir == tmp_path / "w"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config.model.widht=3"], ["config.model.widht", "did you mean --config.model.width"]),
        (["--config.rate=fast"], ["rate"]),
        (["--wrokdir=x"], ["wrokdir"]),
        (["surplus"], ["surplus"]),
    ],
)
def test_mistakes_are_told_in_one_line_with_exit_code_2(config_file, tmp_path, capsys, args, words):
    with pytest.raises(SystemExit) as stop:
        _launch(f"--config={config_file}", f"--workdir={tmp_path}", *args)
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "Traceback" not in told
    assert all(word in told for word in words)


@pytest.mark.parametrize("args", [[], ["--config=nowhere.py", "--workdir=x"]])
def test_a_missing_config_is_told(capsys, args):
    with pytest.raises(SystemExit) as stop:
        _launch(*args)
    assert stop.value.code == 2
    assert "--config" in capsys.readouterr().err


def test_a_missing_workdir_is_told(config_file, capsys):
    with pytest.raises(SystemExit) as stop:
        _launch(f"--config={config_file}")
    assert stop.value.code == 2
    assert "--workdir" in capsys.readouterr().err


def test_help_needs_no_config(capsys):
    with pytest.raises(SystemExit) as stop:
        _launch("--help")
    assert stop.value.code == 0
    assert "--workdir=DIR" in capsys.readouterr().out


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Section:
    width: int
    depth: int = 2


def test_freeze_names_unknown_and_missing_fields_at_once():
    with pytest.raises(UserError) as error:
        cli.freeze(_Section, ConfigDict({"dept": 3}), "model")
    assert "config.model.dept: unknown field; did you mean depth?" in str(error.value)
    assert "config.model.width: is missing" in str(error.value)
    assert cli.freeze(_Section, ConfigDict({"width": 3}), "model") == _Section(width=3)


def test_a_workdir_belongs_to_one_config(tmp_path):
    config: Any = ConfigDict({"a": 1, "b": {"c": (1, 2)}})
    cli.check_workdir(tmp_path, config)
    cli.check_workdir(tmp_path, config)
    config.b.c = (1, 3)
    with pytest.raises(UserError, match=r"b\.c: there \[1, 2\], now \[1, 3\]"):
        cli.check_workdir(tmp_path, config)


def _own(values: flags.FlagValues) -> None:
    flags.DEFINE_enum("part", "all", ["all", "first"], "which part", flag_values=values)


def test_an_experiment_may_have_flags_of_its_own(config_file, tmp_path, capsys):
    def launch(*args: str):
        got: list[Any] = []
        argv = ["prog", f"--config={config_file}", f"--workdir={tmp_path}", *args]
        cli.launch(lambda config, workdir, part: got.append((config.rate, part)), "doc", argv=argv, define=_own)
        return got[0]

    assert launch() == (0.5, "all")
    assert launch("--part=first", "--config.rate=0.75") == (0.75, "first")
    for args, word in ((["--part=last"], "all|first"), (["--help"], "--part=...")):
        with pytest.raises(SystemExit):
            launch(*args)
        told = capsys.readouterr()
        assert word in told.out + told.err
        assert "Traceback" not in told.err


def test_a_file_where_the_workdir_should_be_is_told(config_file, capsys):
    def run(config, workdir):
        cli.check_workdir(workdir, config)

    with pytest.raises(SystemExit) as stop:
        cli.launch(run, "doc", argv=["prog", f"--config={config_file}", f"--workdir={config_file}"])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert str(config_file) in told
