"""Benchmarks of `experiments.bench`, a file for each theme."""
