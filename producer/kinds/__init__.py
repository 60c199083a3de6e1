"""Kinds of tasks, one module each: what is wanted, what is kept of each, what is made of all."""
