"""How files behind a network are read."""

from dataclasses import dataclass

from .._checks import check_at_least, check_between


@dataclass(frozen=True)
class RemoteConfig:
    """How shards at gs://, s3://, http:// and https:// are read."""

    cache: str = ""
    """Folder for images that were read, shared by all processes of a host; empty: in the user's cache folder."""
    cache_gib: float = 20.0
    """Largest size of that folder in GiB, when the oldest images go; 0: nothing is kept."""
    timeout_s: float = 30.0
    """Longest time of one request."""
    attempts: int = 5
    """Requests for the same bytes before the run ends with an error; pauses between them double from half a second."""

    def __post_init__(self) -> None:
        check_at_least("remote.cache_gib", self.cache_gib, 0)
        check_between("remote.timeout_s", self.timeout_s, 0, 3600, low_open=True)
        check_at_least("remote.attempts", self.attempts, 1)
