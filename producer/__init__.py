"""Enqueue tasks, collect their shards, and write the manifest, the results and the report."""
