"""Enqueues tasks, collects shards, writes the manifest, the results and the report."""
