"""The producer's side of the queue: enqueueing missing tasks, and seeing who is at work."""
