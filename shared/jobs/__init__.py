"""Jobs in Redis: the connection, the queue of tasks, and each job's history."""
