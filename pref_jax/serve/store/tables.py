"""The tables of the newest version; `migrations` makes them.

Texts stand once each. A user's id stands in one row of `people`; everything else names that row by its number. Numbers
of votes and revisions come from one counter, which never gives a number twice: a user who was removed and comes back
never has a revision that somebody remembers of before.
"""

import sqlalchemy as sa

# The version of the tables that this code works with: the newest file in migrations/versions.
HEAD = "0001"
# PostgreSQL's own order depends on the server's language; SQLite's is that of code points.
ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _text(name: str) -> sa.Column:
    return sa.Column(name, BIG, sa.ForeignKey("texts.number"), nullable=False, index=True)


# One row: the last number given. PostgreSQL has the sequence `numbers` instead, for which writers do not queue.
counter = sa.Table("counter", metadata, sa.Column("last", BIG, primary_key=True, autoincrement=False))
people = sa.Table(
    "people",
    metadata,
    sa.Column("number", BIG, sa.Identity(), primary_key=True),
    sa.Column("id", ID, nullable=False, unique=True),
    sa.Column("revision", BIG, nullable=False),
)
texts = sa.Table(
    "texts",
    metadata,
    sa.Column("number", BIG, sa.Identity(), primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
    # Whether `text` is the JSON of chat messages.
    sa.Column("chat", sa.Boolean, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)
votes = sa.Table(
    "votes",
    metadata,
    sa.Column("number", BIG, primary_key=True, autoincrement=False),
    sa.Column("id", ID, nullable=False, unique=True),
    sa.Column("person", BIG, sa.ForeignKey("people.number"), nullable=False),
    _text("prompt"),
    _text("first"),
    _text("second"),
    sa.Column("choice", sa.Text, nullable=False),
    sa.Column("strength", sa.Double),
    sa.Column("shown", sa.Text),
    sa.Column("asked", sa.Text),
    sa.Column("pair", sa.Text),
    sa.Column("latency", sa.Double),
    sa.Column("page_version", sa.Text),
    sa.Column("model_version", sa.Text),
    sa.Column("time", sa.Double),
    sa.Column("received", sa.Double, nullable=False),
    # Of `received`, in days since 1970: the two databases round differently.
    sa.Column("day", sa.Integer, nullable=False, index=True),
    sa.Index(None, "person", "number"),
    sa.CheckConstraint("choice IN ('first', 'second', 'tie', 'both_bad', 'skip')", name="choice"),
    sa.CheckConstraint("strength IS NULL OR (strength > 0 AND choice IN ('first', 'second'))", name="strength"),
)
keys = sa.Table(
    "keys",
    metadata,
    sa.Column("name", ID, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("rights", sa.Text, nullable=False),
    sa.Column("person", BIG, sa.ForeignKey("people.number"), index=True),
)
models = sa.Table(
    "models",
    metadata,
    sa.Column("version", ID, primary_key=True),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("since", sa.Double, nullable=False),
)
pairs = sa.Table(
    "pairs",
    metadata,
    sa.Column("number", BIG, primary_key=True, autoincrement=False),
    sa.Column("pool", ID, nullable=False),
    sa.Column("id", ID, nullable=False),
    _text("prompt"),
    _text("first"),
    _text("second"),
    sa.UniqueConstraint("pool", "id"),
    sa.Index(None, "pool", "number"),
)
