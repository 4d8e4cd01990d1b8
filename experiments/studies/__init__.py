"""Studies beside the main tables."""
