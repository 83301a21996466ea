"""The `clipa` command. One small file per command; none imports JAX before it runs."""

from ._main import main as main
