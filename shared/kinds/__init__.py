"""Kinds of tasks, one module each: what travels to a worker, and what comes back."""
