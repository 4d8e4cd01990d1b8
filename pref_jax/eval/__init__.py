"""Accuracy by group with intervals, report, plots."""
