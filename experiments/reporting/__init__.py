"""From scores to tables, reports and pictures."""
