"""The kinds of tasks, one module each: which are wanted, how shards are kept, what results they give."""
