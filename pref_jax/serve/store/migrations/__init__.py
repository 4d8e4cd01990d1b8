"""How the tables became what they are: Alembic's files, one for each version."""
