"""Results files, tables and reports."""
