"""Batches of comparisons for training."""
