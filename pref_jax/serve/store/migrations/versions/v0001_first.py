"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Makes them."""
    _counter()
    op.create_table(
        "people",
        sa.Column("number", BIG, sa.Identity(), nullable=False),
        sa.Column("id", ID, nullable=False),
        sa.Column("revision", BIG, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_people"),
        sa.UniqueConstraint("id", name="uq_people_id"),
    )
    op.create_table(
        "texts",
        sa.Column("number", BIG, sa.Identity(), nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("chat", sa.Boolean, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_texts"),
        sa.UniqueConstraint("digest", name="uq_texts_digest"),
    )
    _votes()
    _pairs()
    op.create_table(
        "keys",
        sa.Column("name", ID, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("rights", sa.Text, nullable=False),
        sa.Column("person", BIG),
        sa.PrimaryKeyConstraint("name", name="pk_keys"),
        sa.UniqueConstraint("digest", name="uq_keys_digest"),
        sa.ForeignKeyConstraint(["person"], ["people.number"], name="fk_keys_person"),
    )
    op.create_index("ix_keys_person", "keys", ["person"])
    op.create_table(
        "models",
        sa.Column("version", ID, nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
        sa.Column("since", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("version", name="pk_models"),
    )


def _counter() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("CREATE SEQUENCE numbers AS bigint")
        return
    last = sa.Column("last", BIG, autoincrement=False, nullable=False)
    table = op.create_table("counter", last, sa.PrimaryKeyConstraint("last", name="pk_counter"))
    op.bulk_insert(table, [{"last": 0}])


def _votes() -> None:
    op.create_table(
        "votes",
        sa.Column("number", BIG, autoincrement=False, nullable=False),
        sa.Column("id", ID, nullable=False),
        sa.Column("person", BIG, nullable=False),
        *(sa.Column(name, BIG, nullable=False) for name in ("prompt", "first", "second")),
        sa.Column("choice", sa.Text, nullable=False),
        sa.Column("strength", sa.Double),
        *(sa.Column(name, sa.Text) for name in ("shown", "asked", "pair")),
        sa.Column("latency", sa.Double),
        *(sa.Column(name, sa.Text) for name in ("page_version", "model_version")),
        sa.Column("time", sa.Double),
        sa.Column("received", sa.Double, nullable=False),
        sa.Column("day", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_votes"),
        sa.UniqueConstraint("id", name="uq_votes_id"),
        sa.ForeignKeyConstraint(["person"], ["people.number"], name="fk_votes_person"),
        *_text_keys("votes"),
        sa.CheckConstraint("choice IN ('first', 'second', 'tie', 'both_bad', 'skip')", name="ck_votes_choice"),
        sa.CheckConstraint(
            "strength IS NULL OR (strength > 0 AND choice IN ('first', 'second'))", name="ck_votes_strength"
        ),
    )
    op.create_index("ix_votes_person_number", "votes", ["person", "number"])
    for name in ("prompt", "first", "second", "day"):
        op.create_index(f"ix_votes_{name}", "votes", [name])


def _pairs() -> None:
    op.create_table(
        "pairs",
        sa.Column("number", BIG, autoincrement=False, nullable=False),
        sa.Column("pool", ID, nullable=False),
        sa.Column("id", ID, nullable=False),
        *(sa.Column(name, BIG, nullable=False) for name in ("prompt", "first", "second")),
        sa.PrimaryKeyConstraint("number", name="pk_pairs"),
        sa.UniqueConstraint("pool", "id", name="uq_pairs_pool_id"),
        *_text_keys("pairs"),
    )
    op.create_index("ix_pairs_pool_number", "pairs", ["pool", "number"])
    for name in ("prompt", "first", "second"):
        op.create_index(f"ix_pairs_{name}", "pairs", [name])


def _text_keys(table: str) -> list[sa.ForeignKeyConstraint]:
    return [
        sa.ForeignKeyConstraint([name], ["texts.number"], name=f"fk_{table}_{name}")
        for name in ("prompt", "first", "second")
    ]
