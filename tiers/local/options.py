"""What a tier is told when it opens: where it lives and how much it may take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ...errors import ConfigError

MIN_CAPACITY_BYTES = 16 * 1024 * 1024


class Neighbours(Protocol):
    """Others on the file system of a tier, whose data may go for the tier's."""

    def give_way(self, wanted_bytes: int) -> int:
        """Free that much if possible; how much it was. Called in the thread that needs the room, by one at a time."""
        ...

    def used_bytes(self) -> int:
        """What could be freed. May walk over many files."""
        ...


@dataclass(frozen=True)
class TierOptions:
    """Frozen options of one tier; nonsense is refused here, never silently corrected.

    `name` is what people see ("ram", "ssd"). `capacity_bytes` bounds what the folder allocates on its file system
    (blocks, not logical sizes), at every moment. `free_space_ratio` is the fraction of the file system's bytes and
    inodes that stays free whatever the capacity says. `low_watermark` is the fraction of the capacity that evicting
    goes down to once the tier is full, and `batch_bytes` the most that one writer evicts for it. `owner` says who
    holds the folder in words for people ("the mount at /mnt/train"). `probe_interval_s` is how long a tier stays out of
    service before it is tried again. `max_open_files` bounds the descriptors kept open. `neighbours` are
    asked to give way before data is evicted because the file system, not the capacity, is short.
    """

    name: str
    folder: Path
    capacity_bytes: int
    free_space_ratio: float = 0.1
    low_watermark: float = 0.98
    batch_bytes: int = 64 * 1024 * 1024
    owner: str = ""
    probe_interval_s: float = 10.0
    max_open_files: int = 256
    neighbours: Neighbours | None = None

    def __post_init__(self) -> None:
        if self.capacity_bytes < MIN_CAPACITY_BYTES:
            raise ConfigError(
                f"a {self.name} tier of {self.capacity_bytes} bytes is too small",
                remedy=f"give it at least {MIN_CAPACITY_BYTES} bytes, or leave the tier out",
            )
        if not 0 <= self.free_space_ratio < 1:
            raise ConfigError(f"free-space ratio {self.free_space_ratio} is not between 0 and 1")
        if not 0 < self.low_watermark <= 1:
            raise ConfigError(f"low watermark {self.low_watermark} is not between 0 and 1")
        if self.max_open_files < 16:
            raise ConfigError(f"{self.max_open_files} open files are too few for a tier", remedy="allow at least 16")
