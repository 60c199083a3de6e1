"""Steering: what a person says to a run or to the whole fleet while it works."""
