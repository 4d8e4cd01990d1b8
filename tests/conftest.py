"""One climate for all tests: eight fake devices, exact matrix products, strict broadcasting, checked shapes."""

import os
from pathlib import Path

# Tests compile thousands of tiny programs and run each once, so XLA is told not to optimise them: two thirds less
# time. Tests of the whole road start processes of their own, without these flags.
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *FLAGS))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
# Files of tests, processes that they start, and a second run share what took long to compile.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import matplotlib
import pytest

# jaxtyping's shapes in signatures are checked while the tests run, and only then.
from jaxtyping import install_import_hook

install_import_hook(["pref_jax", "copl_jax", "lore_jax"], "beartype.beartype")

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
matplotlib.use("Agg")


@pytest.fixture(scope="module", autouse=True)
def _programs_are_let_go():
    """Every compiled program holds mapped memory: one worker that kept those of all files would pass the number of
    mappings that Linux allows a process (65 530), and XLA dies of that."""
    yield
    jax.clear_caches()
