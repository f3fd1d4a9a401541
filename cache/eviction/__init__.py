"""Which entry of a local tier goes when there is no room: the policies, and how one is chosen by name.

A policy numbers nothing and does no I/O: a tier gives it dense entry numbers (a 4 MiB block of a large object, or
one small object) and asks for the next victim. All state lies in flat arrays indexed by entry number, because a
node holds tens of millions of entries and a Python object for each would cost more memory than the index itself.

| name   | keeps | for |
|---|---|---|
| s3fifo | what was asked more than once | the default: mixed reading, scans pass through without emptying the tier |
| lru    | what was asked last | working sets that fit |
| ttl    | what is younger than an age | data that is useless after a time |
| epoch  | what is there | shuffled full passes over more data than fits |

Rules that every policy keeps (`tests/cache/test_eviction.py` holds them to it):

- `admit`, `grow`, `remove`, `victim` and `skip` are called by one thread at a time (the tier's lock); `hit` by any thread at
  any moment, without the lock. So `hit` writes single array cells or appends to a deque, never links.
- `victim` names an entry and leaves it in; the tier answers with `remove` (evicted) or `skip` (pinned: look
  elsewhere first). A skipped entry is parked, so that a million pinned entries are not walked for each eviction.
"""

from ...errors import ConfigError
from .epoch import EpochPolicy
from .lru import LruPolicy
from .s3fifo import S3FifoPolicy
from .ttl import TtlPolicy

POLICIES = ("s3fifo", "lru", "ttl", "epoch")
DEFAULT_TTL_S = 7 * 24 * 3600.0

Policy = S3FifoPolicy | LruPolicy | TtlPolicy | EpochPolicy


def make_policy(name: str, capacity_bytes: int, *, ttl_s: float = DEFAULT_TTL_S) -> Policy:
    """A fresh policy for one tier of `capacity_bytes`. `ttl_s` matters to `ttl` only. Raises ConfigError for other names."""
    if name == "s3fifo":
        return S3FifoPolicy(capacity_bytes)
    if name == "lru":
        return LruPolicy()
    if name == "ttl":
        return TtlPolicy(ttl_s)
    if name == "epoch":
        return EpochPolicy(capacity_bytes)
    raise ConfigError(f"there is no eviction policy {name!r}", remedy=f"choose one of {', '.join(POLICIES)}")


__all__ = [
    "DEFAULT_TTL_S",
    "POLICIES",
    "EpochPolicy",
    "LruPolicy",
    "Policy",
    "S3FifoPolicy",
    "TtlPolicy",
    "make_policy",
]
