"""State and step, loop, checkpoints, logging, mesh."""
