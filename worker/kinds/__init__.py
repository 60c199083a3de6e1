"""How a worker runs each kind of task, one module per kind. MLX is imported with the first task."""
