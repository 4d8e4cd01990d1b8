"""Launchable experiments."""
