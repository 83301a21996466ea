"""Where each pair of a shard lies and what is known of it, and many shards as one sequence."""
