"""One user's weights, given a basis of rewards."""
