"""Tables of users, responses and comparisons; their sources; tokens; batches."""
