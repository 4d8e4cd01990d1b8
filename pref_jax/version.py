"""The version, as the installed package says."""

import importlib.metadata

__version__ = importlib.metadata.version("pref-jax")
