"""Compilers of machines that are not there: packages in a folder beside the environment, for one process at a time.

With libtpu inside the environment, JAX would look for a TPU at every start.
"""

import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.planning import program_cost, roofline
from experiments.planning.hardware import Hardware
from experiments.planning.hlo_text import parse
from experiments.planning.programs import Planned
from pref_jax.errors import UserError

SITE = Path(".plan")
_MARK = "PREF_PLAN"
_USED = re.compile(r"(?:Used |for HLO temporaries \()([\d.]+)([KMG])\b")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Compiled(NamedTuple):
    """What a program would take on one device; times are estimates by peaks.

    Attributes:
      fits: whether the compiler found room for it.
      arguments: bytes of what it is given.
      temporaries: bytes of what it makes on the way.
      peak: bytes of all, results that take no argument's place among them; where it does not fit, as far as it is told.
      work: operations, bytes and collectives; None where it does not fit.
      estimate: seconds; None likewise.
      seconds: of compiling.
    """

    fits: bool
    arguments: int
    temporaries: int
    peak: int
    work: program_cost.Work | None
    estimate: roofline.Estimate | None
    seconds: float


def enter(hardware: Hardware, site: Path = SITE) -> None:
    """Starts this process again with the compiler of a machine, unless it has it.

    Raises:
      UserError: if the compiler is not installed.
    """
    if os.environ.get(_MARK) == hardware.kind:
        return
    folder = (site / hardware.kind).resolve()
    if not folder.is_dir():
        raise UserError(f"no compiler for {hardware.name} in {folder}; `make plan` installs it")
    os.execve(sys.executable, [sys.executable, *_again()], {**os.environ, **environment(hardware, folder)})


def environment(hardware: Hardware, folder: Path) -> Mapping[str, str]:
    """What a process has to find in its environment to compile for a machine."""
    paths = [str(folder), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    own = {_MARK: hardware.kind, "PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    if hardware.kind == "tpu":
        # Else it asks the cloud's metadata which TPU it is on, and keeps other processes from what is not there.
        own |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        return {**own, "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
    return {**own, "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def _again() -> list[str]:
    """The command line of this process, as `python -m` was given it."""
    own: Any = sys.modules["__main__"].__spec__
    return (["-m", own.name] if own is not None else [sys.argv[0]]) + sys.argv[1:]


def compile_for(planned: Planned, hardware: Hardware) -> Compiled:
    """Compiles a program that was lowered for a machine's devices.

    Raises:
      UserError: if the compiler refuses it for another reason than the lack of memory.
    """
    start = time.perf_counter()
    try:
        compiled = planned.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = _USED.search(str(error))
        if used is None and "RESOURCE_EXHAUSTED" not in str(error):
            raise UserError(f"{hardware.name}: the compiler stops: {str(error).splitlines()[0]}") from error
        peak = int(float(used[1]) * _UNITS[used[2]]) if used else 0
        return Compiled(False, 0, 0, peak, None, None, time.perf_counter() - start)
    return costs(compiled, hardware, time.perf_counter() - start)


def costs(compiled: jax.stages.Compiled, hardware: Hardware, seconds: float) -> Compiled:
    """What a compiled program takes on a device of a machine; `seconds` are those of compiling."""
    stats: Any = compiled.memory_analysis()
    arguments, temporaries = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    code = stats.generated_code_size_in_bytes
    peak = arguments + temporaries + stats.output_size_in_bytes - stats.alias_size_in_bytes + code
    work = program_cost.count(parse(compiled.as_text()))
    found = roofline.estimate(work, hardware.chip)
    return Compiled(peak <= hardware.chip.memory, arguments, temporaries, peak, work, found, seconds)
