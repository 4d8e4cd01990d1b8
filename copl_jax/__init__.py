"""CoPL: collaborative preference learning (arXiv 2503.01658) in JAX."""
