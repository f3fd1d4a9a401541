"""What is known of one folder of a live bucket, and until when."""

import math
from typing import NamedTuple

from .folder_listing import IS_FOLDER, Entry, FolderListing


class Known(NamedTuple):
    """A listing, the moment at which its loading *began* (what it says was true then or later), until when it may be
    believed without asking again, and from when on being used makes it be loaded again ahead of that."""

    listing: FolderListing
    as_of_s: float
    until_s: float
    refresh_from_s: float = math.inf


class KnownName(NamedTuple):
    """What one request said of one name; `entry` is None when there is no such name."""

    entry: Entry | None
    as_of_s: float
    until_s: float


class Found(NamedTuple):
    """An answer about one name, and for how long it may still be believed; `ttl_s` is 0 for answers of an outage.

    From a listing: `listing` and `row` (that of a file, or IS_FOLDER, or IS_ABSENT). From a request for one name:
    `single`, None when there is no such name.
    """

    listing: FolderListing | None
    row: int
    single: Entry | None
    ttl_s: float

    def entry(self, name: bytes) -> Entry | None:
        """What there is under `name`, which is the name that was asked for; None if certainly nothing."""
        if self.listing is None:
            return self.single
        if self.row >= 0:
            return self.listing.file(self.row)
        return Entry(name, True) if self.row == IS_FOLDER else None


class FolderState:
    """Changed on the event loop only, but for `used_s` and `refresh_asked_of`. `known` is replaced as a whole, so other
    threads may read it.

    `used_s` is when it was last asked, for eviction. `is_large` says that the folder did not fit one page when it was last
    tried: single names are asked for then, until `name_requests` says that loading it all is worth it. `load_s` is how long
    that took the last time, 0 if it was never done. What was asked before `expired_s` is not believed.
    """

    __slots__ = (
        "expired_s",
        "holders",
        "is_large",
        "known",
        "load_s",
        "name_requests",
        "names",
        "prefix",
        "refresh_asked_of",
        "used_s",
    )

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.known: Known | None = None
        self.names: dict[bytes, KnownName] = {}
        self.is_large = False
        self.load_s = 0.0
        self.expired_s = 0.0
        self.name_requests = 0
        self.holders = 0
        self.used_s = 0.0
        self.refresh_asked_of: Known | None = None
