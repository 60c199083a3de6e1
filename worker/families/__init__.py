"""Families of models: one file each, and one line in `registry`."""
