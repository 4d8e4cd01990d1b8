"""Users who answer one comparison at a time."""
