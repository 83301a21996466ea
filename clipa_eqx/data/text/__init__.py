"""Captions to token ids and word classes."""
