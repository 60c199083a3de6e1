"""Kinds of tasks, one module each: how a worker runs them. MLX is imported with the first task."""
