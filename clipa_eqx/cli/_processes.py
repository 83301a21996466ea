"""Flags that join several processes into one run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Processes:
    """Which process of a run this is. Start the same command once per process."""

    coordinator: str = ""
    """host:port of process 0; auto: as SLURM, Cloud TPU or another cluster that JAX knows tells. Empty: one process."""
    count: int = 0
    """Processes in all; not needed with auto."""
    index: int = -1
    """Place of this process, from 0; not needed with auto."""

    def __post_init__(self) -> None:
        explicit = self.coordinator not in ("", "auto")
        if explicit and not 0 <= self.index < self.count:
            raise ValueError(
                f"--processes.coordinator {self.coordinator} needs --processes.count and a --processes.index "
                f"below it, got count={self.count}, index={self.index}."
            )
        if not explicit and (self.count or self.index >= 0):
            raise ValueError("--processes.count and --processes.index need --processes.coordinator HOST:PORT.")

    def join(self) -> None:
        """Connect to the other processes; call before the first device is touched."""
        if not self.coordinator:
            return
        import jax

        if self.coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(self.coordinator, self.count, self.index)
