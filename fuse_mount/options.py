"""What can be chosen about a mount; stdlib-only, because drivers that answer kubelet import it too."""

import os
from dataclasses import dataclass, field
from typing import Literal

from ..errors import UsageError

TransportName = Literal["auto", "lane", "pyfuse3"]


@dataclass(frozen=True)
class MountOptions:
    """Choices of one mount. Raises UsageError for values that make no sense.

    `transport`: "lane" (our own server on /dev/fuse), "pyfuse3" (libfuse), or "auto": the lane, and libfuse where the
    kernel is too old for it. `umask`, `uid` and `gid` decide how files appear, and so, by `default_permissions`, who
    may read. `read_ahead_bytes` is what the kernel reads ahead of a sequential reader. `io_timeout_s` bounds every wait
    for the store; None leaves it to the store's own deadline. `lane_threads` read from the kernel at once; all but one of them may be busy with a local disk.
    `max_inflight` requests wait for I/O at once, and `max_waiting` more wait for their turn.
    """

    transport: TransportName = "auto"
    read_only: bool = True
    allow_other: bool = False
    nonempty: bool = False
    uid: int = field(default_factory=os.getuid)
    gid: int = field(default_factory=os.getgid)
    umask: int = 0o022
    read_ahead_bytes: int = 16 * 1024 * 1024
    io_timeout_s: float | None = None
    lane_threads: int = 8
    max_inflight: int = 256
    max_waiting: int = 16384
    ready_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.umask <= 0o777:
            raise UsageError(f"umask {self.umask:o} is not between 000 and 777")
        if self.uid < 0 or self.gid < 0:
            raise UsageError(f"uid {self.uid} and gid {self.gid} must not be negative")
        if self.read_ahead_bytes < 0:
            raise UsageError(f"read-ahead of {self.read_ahead_bytes} bytes is negative")
        if not 1 <= self.lane_threads <= 64:
            raise UsageError(f"{self.lane_threads} lane threads: choose 1 to 64")
        if self.max_inflight < 1 or self.max_waiting < self.max_inflight:
            raise UsageError(
                f"max_inflight {self.max_inflight} must be at least 1 and at most max_waiting {self.max_waiting}"
            )
        if self.io_timeout_s is not None and self.io_timeout_s <= 0:
            raise UsageError(f"io timeout of {self.io_timeout_s} s must be positive")
        if self.transport not in ("auto", "lane", "pyfuse3"):
            raise UsageError(f"transport {self.transport!r} is unknown", remedy="choose auto, lane or pyfuse3")
