"""The `clipa` command. One small file per command; none imports JAX before it runs."""

from ._entry import main as main
