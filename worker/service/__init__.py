"""A worker as a program on a machine: supervisor, process, options, what it keeps between jobs."""
