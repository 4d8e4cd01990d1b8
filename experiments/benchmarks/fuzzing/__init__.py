"""Damaged files of votes, and a slow reader that says what is in them."""
