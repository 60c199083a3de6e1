"""Where shards wait until they are collected: the contract and its two stores."""
