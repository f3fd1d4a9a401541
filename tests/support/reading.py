"""Ways to read a piece of a file, for a process other than the one that serves the mount.

Another process, because a page fault on mapped memory keeps the interpreter's lock: one process cannot both fault on a
mount and serve it.
"""

import mmap
import os
from collections.abc import Callable
from typing import TypeAlias

Read: TypeAlias = Callable[[str, int, int], bytes]
PAGE = 4096


def read_plain(path: str, offset: int, size: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


def read_mapped(path: str, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return b""
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            return mapped[offset : offset + size]


def read_direct(path: str, offset: int, size: int) -> bytes:
    start = offset // PAGE * PAGE
    buffer = mmap.mmap(-1, max(PAGE, -(-(offset - start + size) // PAGE) * PAGE))
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        got = os.preadv(descriptor, [buffer], start)
        return buffer[: max(got, 0)][offset - start : offset - start + size]
    finally:
        os.close(descriptor)
        buffer.close()


def read_buffered(path: str, offset: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


WAYS: list[Read] = [read_plain, read_mapped, read_direct, read_buffered]
