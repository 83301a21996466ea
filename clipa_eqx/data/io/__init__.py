"""Bytes out of files, here and behind a network; files that appear as a whole."""
