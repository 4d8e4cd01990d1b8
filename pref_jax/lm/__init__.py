"""Transformer families in Flax, their Hugging Face weights, adapters and sharding."""
