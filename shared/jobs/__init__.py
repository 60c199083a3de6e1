"""How jobs travel: the queue of tasks in Redis, a job's history, the connection."""
