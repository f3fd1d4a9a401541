"""Whether a tier can be used, and what went wrong with it.

A cache must never turn the trouble of its disk into trouble of its readers:

    the disk is full (ENOSPC, EDQUOT)      the write raises TierFull, nothing else changes
    the file system is read-only, denied   no more writes (TierFailed); what is cached is still read
    anything else (EIO, ...)               out of service: reads are misses, writes raise TierFailed

What is out of service is probed again every `probe_interval_s`, by whoever comes first with a write or a read:
one small file is written, synced and read back. Trouble is logged when it starts and when it ends, not in between;
corrupt chunks are counted all, and logged at most once in `LOG_INTERVAL_S`.
"""

import errno
import logging
import math
import os
import threading
import time
from pathlib import Path

from ...errors import TierError, TierFailed, TierFull
from .files import READ_ONLY
from .folder import PROBE_FILE

log = logging.getLogger(__name__)

LOG_INTERVAL_S = 30.0
# A bad sector costs its chunks; this many read errors between two successful probes mean the disk.
MAX_READ_ERRORS = 16
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Not the disk's fault: too many open files, no memory, interrupted. The operation fails, the tier stays in service.
PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN})


class Health:
    """State of one tier. `readable` and `writable` are plain attributes, read on the hot path without a lock."""

    def __init__(self, name: str, folder: Path, probe_interval_s: float) -> None:
        self.readable = True
        self.writable = True
        self.reason: str | None = None
        self.corrupt = 0
        self.failures = 0
        self._name = name
        self._folder = folder
        self._interval_s = probe_interval_s
        self._lock = threading.Lock()
        self._read_errors = 0
        self._next_probe_at = 0.0
        self._logged_corrupt_at = -LOG_INTERVAL_S

    def write_failed(self, error: OSError) -> TierError:
        """What to raise after a write failed; takes the tier out of service if that is what it means."""
        where = f"{self._name} tier at {self._folder}"
        if error.errno in FULL:
            return TierFull(f"the disk of the {where} is full", remedy="free space on it or lower its capacity")
        if error.errno in PASSING:
            return TierFull(f"the {where} could not take the bytes: {error.strerror}")
        self._take_out(error, readable=error.errno in READ_ONLY)
        return TierFailed(f"the {where} is out of service: {self.reason}")

    def read_failed(self, error: OSError) -> bool:
        """A read answered with an error. It is a miss; too many of them mean the disk. Whether the tier is still in
        service, and it was the bytes' fault."""
        if error.errno in PASSING:
            return False
        with self._lock:
            self.failures += 1
            self._read_errors += 1
            first, too_many = self._read_errors == 1, self._read_errors >= MAX_READ_ERRORS
        if first:
            log.warning("cannot read from the %s tier at %s: %s", self._name, self._folder, error.strerror)
        if too_many:
            self._take_out(error, readable=False)
        return not too_many and self.readable

    def found_corrupt(self, what: str, count: int = 1) -> None:
        """Bytes did not match their checksum, or a file was damaged. They are a miss, and will be fetched again."""
        with self._lock:
            self.corrupt += count
            now = time.monotonic()
            if now - self._logged_corrupt_at < LOG_INTERVAL_S:
                return
            self._logged_corrupt_at = now
        log.warning("corrupt data in the %s tier (%d so far), dropped: %s", self._name, self.corrupt, what)

    def check_writable(self) -> None:
        """Raise TierFailed unless the tier takes writes (after a probe, if one is due)."""
        if not self.writable and not self.probe():
            raise TierFailed(f"the {self._name} tier at {self._folder} is out of service: {self.reason}")

    def probe(self) -> bool:
        """Whether the tier is in service. Out of it: tries the disk, when it is time, and comes back if it works."""
        with self._lock:
            now = time.monotonic()
            if self.writable or now < self._next_probe_at:
                return self.writable
            self._next_probe_at = now + self._interval_s
        try:
            self.try_disk()
        except OSError as error:
            log.debug("the %s tier at %s still fails: %s", self._name, self._folder, error)
            return False
        with self._lock:
            self.readable = self.writable = True
            self.reason = None
            self._read_errors = 0
        log.warning("the %s tier at %s is in service again", self._name, self._folder)
        return True

    def close(self) -> None:
        """The tier is closed: nothing is readable or writable any more, and no probe brings it back."""
        with self._lock:
            self.readable = self.writable = False
            self.reason = "closed"
            self._next_probe_at = math.inf

    def try_disk(self) -> None:
        """Write, sync and read one small file, or raise OSError."""
        path = self._folder / PROBE_FILE
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            pattern = b"forebay " * 512
            if os.pwrite(fd, pattern, 0) != len(pattern):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(fd)
            if os.pread(fd, len(pattern), 0) != pattern:
                raise OSError(errno.EIO, "the probe reads back other bytes", str(path))
        finally:
            os.close(fd)
            path.unlink(missing_ok=True)

    def _take_out(self, error: OSError, *, readable: bool) -> None:
        with self._lock:
            self.failures += 1
            already = not self.writable and (readable or not self.readable)
            self.writable = False
            self.readable = self.readable and readable
            self.reason = error.strerror or str(error)
            self._next_probe_at = time.monotonic() + self._interval_s
        if not already:
            consequence = "it takes no more data" if readable else "it is out of service"
            log.error(
                "the %s tier at %s fails (%s): %s; reads go on without it, and it is tried again every %g s",
                self._name, self._folder, self.reason, consequence, self._interval_s,
            )  # fmt: skip
