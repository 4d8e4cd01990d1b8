"""Saved CoPL models and exports for other libraries."""
