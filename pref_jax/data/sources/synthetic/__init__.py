"""A synthetic language world whose users' tastes are known."""
