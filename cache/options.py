"""What can be set about the read side, and what it defaults to."""

from dataclasses import dataclass

from ..errors import ConfigError
from ..tiers.version import CHUNK_BYTES

KIB = 1024
MIB = 1024 * 1024


@dataclass(frozen=True)
class CacheOptions:
    """Limits of one `BlockCache`. Every one is a bound on memory or on requests; sizes are in bytes.

    `max_inflight_bytes`: what is asked of the under store or held in memory until a tier has it, all readers together.
    `window_bytes`: how far readahead runs ahead of one sequential reader.
    `request_bytes`: the largest single request to the under store.
    `random_fill_bytes`: the least that a read without a pattern fetches; it is aligned to this size.
    `prefetch_requests`: requests of one prefetch that are under way at the same time.
    `pending_bytes`: promotions and demotions that wait; more are dropped (and counted), never queued without end.
    `timeout_s`: the longest that a read waits when its caller does not say.
    """

    max_inflight_bytes: int = 256 * MIB
    window_bytes: int = 64 * MIB
    request_bytes: int = 8 * MIB
    random_fill_bytes: int = 64 * KIB
    prefetch_requests: int = 64
    pending_bytes: int = 64 * MIB
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.random_fill_bytes % CHUNK_BYTES or self.request_bytes % CHUNK_BYTES:
            raise ConfigError(f"random_fill_bytes and request_bytes must be multiples of {CHUNK_BYTES}")
        if not 0 < self.random_fill_bytes <= self.request_bytes <= self.max_inflight_bytes:
            raise ConfigError("random_fill_bytes <= request_bytes <= max_inflight_bytes must hold, all above 0")
        if self.window_bytes < 0 or self.prefetch_requests < 1 or self.pending_bytes < 0 or self.timeout_s <= 0:
            raise ConfigError("window_bytes, prefetch_requests, pending_bytes and timeout_s must be positive")
