"""Checks of the tables: leakage, formatting, agreement."""
