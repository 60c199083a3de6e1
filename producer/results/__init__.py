"""Results: collected shards merged into metrics by layer, bits and bucket. Pure functions."""
