"""What an under store has been asked and what came of it: plain numbers, for status and metrics."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class StoreCounters:
    """Counted since the store was opened; changed on the store's event loop only, so any thread may read.

    `requests` counts attempts by kind (`get`, `list`, `head`, `put`, `copy`, `delete`, `multipart`, `check`), each
    retry anew. `errors` counts calls that failed in the end, by the `kind` of the error. `refused_fast` are calls that
    were not tried, since the store was known to be down. `skipped` are things in a folder that are no objects (links that
    leave it, devices...), by reason.
    """

    requests: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    refused_fast: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    corrupt_answers: int = 0
    in_flight: int = 0
    waiting: int = 0
    down_since_s: float | None = None
    down_reason: str | None = None
