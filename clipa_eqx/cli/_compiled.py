"""Compiled programs kept from one start to the next."""

import os
from pathlib import Path
from typing import Annotated

import tyro


CompilationCache = Annotated[
    str,
    tyro.conf.arg(
        help="Folder in which compiled programs are kept, so that the next start skips compiling; auto: one in the "
        "user's cache folder, unless JAX_COMPILATION_CACHE_DIR names one. none: keep nothing."
    ),
]
"""The flag of every command that compiles much; its `run` begins with `keep_compiled`."""


def keep_compiled(folder: str) -> None:
    """Tell JAX where to keep compiled programs; call before anything compiles.

    Args:
        folder: a path; auto: what JAX_COMPILATION_CACHE_DIR names, else `clipa_eqx/compiled` in the user's cache
            folder (XDG_CACHE_HOME, or ~/.cache); none: nowhere.
    """
    import jax

    if folder == "none":
        jax.config.update("jax_enable_compilation_cache", False)
    elif folder != "auto":
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser().resolve()))
    elif not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "clipa_eqx" / "compiled"))
