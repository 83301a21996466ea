"""Pairs in their order, to batches that are read ahead."""
