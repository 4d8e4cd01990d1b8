"""The graph of votes and the user embeddings learned from it."""
