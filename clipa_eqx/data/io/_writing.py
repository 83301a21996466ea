"""Files that other processes see whole or not at all, and where the package keeps its own."""

import os
import uuid
from pathlib import Path


def user_cache() -> Path:
    """The package's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipa_eqx"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, and its folder where there is none; readers see the old content or the new.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid.uuid4().hex}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
