"""What the namespace of a mount knows and what it cost, for status and metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NamespaceStats:
    """A moment's picture. `skipped` counts keys that no path can name, by reason, in the listings now known."""

    folders_known: int = 0
    entries_known: int = 0
    listing_bytes: int = 0
    names_known: int = 0
    listings_loaded: int = 0
    listings_unchanged: int = 0
    listing_pages: int = 0
    name_requests: int = 0
    loads_in_flight: int = 0
    stale_answers: int = 0
    stale_since_s: float | None = None
    stale_reason: str | None = None
    evicted: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    skipped_examples: tuple[str, ...] = ()
