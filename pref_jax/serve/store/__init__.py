"""Votes, users, keys and model versions of a service, in SQLite or PostgreSQL.

`store.Store` is the door; `records` says what goes in and comes out, `errors` what can go wrong.
"""
