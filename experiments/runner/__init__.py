"""How experiments are launched and what they leave on disk."""
