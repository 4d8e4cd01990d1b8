"""The versions of the tables, each made from the one before; a released one is never changed."""
