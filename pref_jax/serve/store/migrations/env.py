"""Alembic runs this file, under the name `env_py`, with the connection and the transaction of who asks for it."""

from alembic import context

from pref_jax.serve.store import tables


def run() -> None:
    """Runs what Alembic was asked for."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=tables.metadata,
        # SQLite changes columns by copying the table.
        render_as_batch=True,
    )
    context.run_migrations()


if __name__ == "env_py":
    run()
