"""The reward model: experts that user embeddings choose, inside a frozen transformer."""
