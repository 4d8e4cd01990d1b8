"""A basis of rewards and a prior over weights, from many users."""
