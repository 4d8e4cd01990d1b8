"""Your own votes as JSON Lines."""
