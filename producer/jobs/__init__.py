"""What the producer does with the queue: enqueue what is missing, see who works."""
