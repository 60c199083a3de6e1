"""The kinds of tasks, one module each: the task that goes to a worker, and the shard that comes back."""
