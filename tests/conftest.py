"""One climate for all tests: eight fake devices, exact matrix products, strict broadcasting, checked shapes."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import matplotlib

# jaxtyping's shapes in signatures are checked while the tests run, and only then.
from jaxtyping import install_import_hook

install_import_hook(["pref_jax", "copl_jax", "lore_jax"], "beartype.beartype")

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
matplotlib.use("Agg")
