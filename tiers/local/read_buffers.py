"""Buffers for large reads that are used again, because fresh memory is dear.

Clearing a fresh megabyte costs more CPU than reading and verifying it. So each thread that reads keeps a few buffers; one is
taken again when no view of it is left (memory.py).
"""

import threading

from ..memory import HugeMemory
from ..version import CHUNK_BYTES

# The largest request of the kernel, with what its first and last chunk have beside it.
BUFFER_BYTES = 1024 * 1024 + 2 * CHUNK_BYTES
BUFFERS_PER_THREAD = 2


class ReadBuffers:
    """Any thread. Holds at most `BUFFERS_PER_THREAD` buffers per thread, until the thread ends."""

    def __init__(self) -> None:
        self._own = threading.local()

    def take(self) -> memoryview:
        """A writable view of `BUFFER_BYTES` bytes that begin at a page. What is in them is left from earlier."""
        buffers: list[HugeMemory] | None = getattr(self._own, "buffers", None)
        if buffers is None:
            self._own.buffers = buffers = []
        for buffer in buffers:
            if not buffer.in_use:
                return buffer.view()[:BUFFER_BYTES]
        buffer = HugeMemory(BUFFER_BYTES)
        if len(buffers) < BUFFERS_PER_THREAD:
            buffers.append(buffer)
        return buffer.view()[:BUFFER_BYTES]
