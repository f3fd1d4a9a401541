"""How a write side behaves: delays, bounds and policies, each checked when it is made."""

import enum
from dataclasses import dataclass

from ...errors import ConfigError

MIB = 1024 * 1024


class OnConflict(enum.Enum):
    """What happens when the object was changed by somebody else while a change of ours was dirty."""

    KEEP_BOTH = "keep-both"  # ours is uploaded under a name of its own beside the other
    OVERWRITE = "overwrite"  # ours replaces the other


class WriteMode(enum.Enum):
    BACK = "back"  # close returns when the bytes are durable
    THROUGH = "through"  # close returns when the object is in the under store


@dataclass(frozen=True, slots=True)
class WriteOptions:
    mode: WriteMode = WriteMode.BACK
    on_conflict: OnConflict = OnConflict.KEEP_BOTH
    # How long a file rests after its close before it is uploaded: what is renamed or deleted soon is never sent.
    writeback_delay_s: float = 1.0
    # After this long a file is uploaded even while it is open for writing.
    max_dirty_age_s: float = 60.0
    # Bytes and files that are dirty; who would pass them waits `dirty_wait_s`, then gets ENOSPC.
    max_dirty_bytes: int = 64 * 1024 * MIB
    max_dirty_files: int = 500_000
    dirty_wait_s: float = 60.0
    # Clean bytes kept for reading: given up when held bytes (dirty and clean) pass `high`, down to `low`.
    high_watermark_bytes: int = 48 * 1024 * MIB
    low_watermark_bytes: int = 32 * 1024 * MIB
    # Clean files whose attributes and inode are remembered.
    max_clean_records: int = 200_000
    # How long whiteouts and opaque folders stay at least: longer than a listing that was asked before can take to arrive.
    retire_after_s: float = 120.0
    # Files up to this size live in their record.
    inline_bytes: int = 32 * 1024
    # Uploads: files at once; part size and parts at once over all files.
    upload_files: int = 48
    part_bytes: int = 16 * MIB
    upload_parts: int = 8
    retry_first_s: float = 0.5
    retry_max_s: float = 60.0
    # How long after it was sent a request without an answer may still be applied: then the key of a publish is looked at again,
    # and that of a deletion may be published to.
    recheck_s: float = 120.0
    # Where records are shared: a writer that was not heard of for so long is dead. Three quarters of it are more than one
    # request to the under store can take.
    lease_s: float = 45.0

    def __post_init__(self) -> None:
        if self.low_watermark_bytes > self.high_watermark_bytes:
            raise ConfigError("the low watermark of the write tier lies above the high one")
        if self.part_bytes < 5 * MIB:
            raise ConfigError("parts of an upload have at least 5 MiB", remedy="raise the part size")
        for name in ("max_dirty_bytes", "max_dirty_files", "upload_files", "upload_parts", "max_clean_records"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above zero")
        for name in (
            "writeback_delay_s",
            "max_dirty_age_s",
            "dirty_wait_s",
            "retry_first_s",
            "retry_max_s",
            "recheck_s",
            "lease_s",
        ):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must not be negative")
