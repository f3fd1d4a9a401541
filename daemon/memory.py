"""Memory of a Forebay process: what large buffers leave behind is used again, and given back when nothing is read any more.

Bytes come from the under store in buffers of up to 8 MiB. The C library's way is to give such a buffer back to the kernel when it is
freed and to take fresh pages for the next: 2048 page faults each, which took a fifth of the CPU of a first read. So freed memory is
kept, in one arena for all threads, since memory that is free in one arena is of no use to a thread that allocates from another.
What can be kept is bounded by what is read ahead at once (`max_inflight_bytes`), and goes back after `IDLE_S` without a fetch.

Only with glibc; other C libraries are left as they are.
"""

import asyncio
import contextlib
import ctypes
from collections.abc import AsyncIterator, Callable

IDLE_S = 15.0
# From <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# The most that glibc takes: half of what an arena may be.
_MMAP_THRESHOLD_BYTES = 32 * 1024 * 1024
_TRIM_THRESHOLD_BYTES = 1024 * 1024 * 1024

_libc = ctypes.CDLL(None)


def keep_freed_memory() -> None:
    """Have the allocator keep what is freed. Before the process has threads."""
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None and hasattr(_libc, "malloc_trim"):
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)


@contextlib.asynccontextmanager
async def given_back_when_idle(fetched_bytes: Callable[[], int]) -> AsyncIterator[None]:
    """For the time of a `with`: freed memory goes back to the kernel once `fetched_bytes()` has not changed for `IDLE_S`."""
    task = asyncio.create_task(_give_back(fetched_bytes))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _give_back(fetched_bytes: Callable[[], int]) -> None:
    trim = getattr(_libc, "malloc_trim", None)
    before = given_back_at = fetched_bytes()
    while trim is not None:
        await asyncio.sleep(IDLE_S)
        now = fetched_bytes()
        if now == before != given_back_at:
            await asyncio.to_thread(trim, 0)
            given_back_at = now
        before = now
