"""Buffers for large reads that are used again, because fresh memory is dear.

A fresh megabyte costs 256 page faults, more CPU than reading and verifying it. So each thread that reads keeps a few
buffers. The rule is that of `OpenFile`: the object is the hold. Who got a view may keep it, and slices of it, for as long
as it likes; the buffer is taken again when no view of it is left. Nobody has to give anything back.
"""

import mmap
import sys
import threading

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
        buffers: list[_Buffer] | None = getattr(self._own, "buffers", None)
        if buffers is None:
            self._own.buffers = buffers = []
        for buffer in buffers:
            if not buffer.in_use:
                return memoryview(buffer.memory)
        buffer = _Buffer()
        if len(buffers) < BUFFERS_PER_THREAD:
            buffers.append(buffer)
        return memoryview(buffer.memory)


class _Buffer:
    """Memory that knows whether anybody has a view of it: each view, however derived, counts as a reference to it."""

    __slots__ = ("_references_when_free", "memory")

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, BUFFER_BYTES)
        self._references_when_free = self._references

    @property
    def in_use(self) -> bool:
        return self._references != self._references_when_free

    @property
    def _references(self) -> int:
        return sys.getrefcount(self.memory)
