"""How every experiment is launched: flags, a typed config, user errors without a traceback."""

import contextlib
import dataclasses
import difflib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from absl import flags
from ml_collections import ConfigDict, config_flags

from pref_jax.errors import Faults, UserError
from pref_jax.files import read_json, write_json
from pref_jax.locks import hold
from pref_jax.mesh import initialize_distributed

T = TypeVar("T")
# An ml_collections ConfigDict. Its fields have no static types, so checkers are told nothing about it.
Config = Any
Experiment = Callable[..., None]


def launch(
    run: Experiment,
    doc: str,
    *,
    default_config: str | None = None,
    argv: Sequence[str] | None = None,
    define: Callable[[flags.FlagValues], None] | None = None,
) -> None:
    """Runs an experiment from the command line and ends the process; meanwhile no other one runs in the workdir.

    Exit codes: 0 it ran, 2 the user has something to fix (one message, no traceback), 130 interrupted.

    Args:
      run: takes the config, the workdir and, by name, the values of the experiment's own flags.
      doc: what `--help` tells, usually the module's docstring.
      default_config: the config file if `--config` is not given.
      argv: the command line, `sys.argv` if None.
      define: defines the experiment's own flags, as in `flags.DEFINE_string("user", "", "whose", flag_values=values)`.
    """
    argv = list(sys.argv if argv is None else argv)
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        config, workdir, own = _parse(argv, doc, default_config, define)
        initialize_distributed()  # before any device is used
        # Several processes may share the work of several data sets; they hold the folders that they work in.
        with contextlib.nullcontext() if "datasets" in config else hold(workdir):
            run(config, workdir, **own)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # no right to write there, a file where a folder should be, a full disk
        print(f"error: {error}; check the path, its rights and the space that is left", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _parse(
    argv: list[str], doc: str, default_config: str | None, define: Callable[[flags.FlagValues], None] | None
) -> tuple[Config, Path, dict[str, Any]]:
    own = flags.FlagValues()
    if define is not None:
        define(own)
    values = flags.FlagValues()
    values.append_flag_values(own)
    file = config_flags.DEFINE_config_file(
        "config", default_config, "config file, configs/NAME.py or configs/NAME.py:variant", flag_values=values
    )
    workdir = flags.DEFINE_string("workdir", None, "folder for everything the run leaves", flag_values=values)
    flags.DEFINE_boolean("help", False, "show this help", short_name="h", flag_values=values)
    if {"--help", "-h", "-help"} & set(argv):
        print(f"{doc.strip()}\n\nflags:\n  --config=configs/NAME.py[:variant]  (default: {default_config})")
        print("  --config.FIELD=VALUE                override any field of the config, --config.a.b=1 for nested ones")
        print("  --workdir=DIR                       folder for everything the run leaves; repeat to go on")
        for name in own:
            print(f"  --{f'{name}=...':<33} {own[name].help} (default: {own[name].default})")
        sys.exit(0)
    try:
        with _looked_for_in(argv):
            rest = values(argv)[1:]
        config = file.value
        if config is None:
            raise UserError("no --config given; name one, such as --config=configs/quickstart.py")
        if not isinstance(config, ConfigDict):
            config.keys()  # ml_collections holds back what is wrong with a file until its first use
    except UserError:
        raise
    except Exception as error:  # a config file may fail in any way of its own
        raise UserError(_config_fault(error, argv, default_config)) from None
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; flags look like --config.field=value and --workdir=DIR")
    if not workdir.value:
        raise UserError("no --workdir given; name a folder for everything the run leaves, such as --workdir=runs/first")
    return config, Path(workdir.value), {name: values[name].value for name in own}


@contextlib.contextmanager
def _looked_for_in(argv: list[str]) -> Iterator[None]:
    """Puts `argv` where ml_collections looks for overrides."""
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


def _config_fault(error: Exception, argv: list[str], default: str | None) -> str:
    """What is wrong with the command line, with the nearest known config field for a misspelt one."""
    path = next((arg.split("=", 1)[1].split(":")[0] for arg in argv if arg.startswith("--config=")), default)
    if path and not Path(path).is_file():
        known = ", ".join(sorted(str(file) for file in Path("configs").glob("[!_]*.py")))
        return f"--config={path}: no such file; known here: {known or 'none, run from the project folder'}"
    fields = _fields(_load(path)) if path else []
    for arg in argv:
        name = arg.split("=", 1)[0].removeprefix("--")
        if not arg.startswith("--config.") or name.removeprefix("config.") in fields:
            continue
        near = difflib.get_close_matches(name, [f"config.{field}" for field in fields], n=3, cutoff=0.5)
        meant = " or ".join(f"--{n}" for n in near) or "another one"
        return f"--{name}: {path} has no such field; did you mean {meant}?"
    return f"{error}; see --help"


def _load(path: str) -> Config:
    values = flags.FlagValues()
    file = config_flags.DEFINE_config_file("config", path, flag_values=values)
    with _looked_for_in(["load"]):
        values(["load", f"--config={path}"])
    return file.value if isinstance(file.value, ConfigDict) else {}


def _fields(config: Config, prefix: str = "") -> list[str]:
    found = []
    for key in config:
        value = config[key]
        found += _fields(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [f"{prefix}{key}"]
    return found


def freeze(kind: type[T], config: Config, where: str, **extra: Any) -> T:
    """Turns a section of a config into the frozen dataclass `kind`; past this edge no ConfigDict travels.

    Raises:
      UserError: naming every unknown or missing field and every value of a wrong type.
    """
    fields: Any = dataclasses.fields(cast(Any, kind))
    known = {field.name: field for field in fields}
    values = {**dict(config.items()), **extra}
    faults = Faults()
    for name in values.keys() - known.keys():
        near = difflib.get_close_matches(name, known, n=1)
        faults.add(f"config.{where}.{name}", "unknown field", f"did you mean {near[0]}?" if near else "remove it")
    for name, field in known.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and name not in values:
            faults.add(f"config.{where}.{name}", "is missing", "give it")
    faults.raise_if_any(f"config section {where!r} does not fit {kind.__name__}")
    return kind(**values)


def check_workdir(workdir: Path, config: Config) -> None:
    """Makes `workdir` this config's: writes `config.json`, or checks that the one there says the same.

    Raises:
      UserError: if the folder holds a run of another config, naming the fields that differ.
    """
    path = workdir / "config.json"
    mine = plain(config.to_dict())
    if not path.exists():
        write_json(path, mine)
        return
    theirs = _flat(read_json(path))
    ours = _flat(mine)
    differing = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if differing:
        shown = "\n".join(f"  {key}: there {theirs.get(key)!r}, now {ours.get(key)!r}" for key in differing[:20])
        raise UserError(f"{workdir} holds a run of another config; take another --workdir or delete it:\n{shown}")


def plain(value: Any) -> Any:
    """`value` as JSON has it: tuples become lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}".lstrip(".")).items()}
