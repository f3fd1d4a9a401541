"""How a large file is cut into the parts of an upload: pure.

The file is cut into cells. A cell that no change touches is copied on the server's side, together with its untouched
neighbours; a cell with a change is sent. Cells are far above S3's smallest part (5 MiB), so every part but the last is
large enough, and as large as it takes to stay within 10,000 parts.
"""

from dataclasses import dataclass

from .extents import Extents

MIB = 1024 * 1024
MOST_PARTS = 10_000
# One server-side copy may take 5 GiB; smaller ones run side by side.
COPY_BYTES = 512 * MIB


@dataclass(frozen=True, slots=True)
class Part:
    """Part `number` (from 1) holds `size` bytes at `offset`; `copied` from the base on the server's side, else sent."""

    number: int
    offset: int
    size: int
    copied: bool


def plan_parts(size: int, changed: Extents, based: int, part_bytes: int) -> list[Part]:
    """Parts of a file of `size` bytes, of which `changed` ranges, and all at and after `based`, are not in the base.

    `part_bytes` is at least 5 MiB; grown for files of more than 10,000 parts.
    """
    cell = max(part_bytes, -(-size // MOST_PARTS))
    parts: list[Part] = []
    offset = 0
    while offset < size:
        length = min(cell, size - offset)
        copied = offset + length <= based and not changed.touches(offset, length)
        if copied and parts and parts[-1].copied and parts[-1].size + length <= max(COPY_BYTES, cell):
            last = parts.pop()
            parts.append(Part(last.number, last.offset, last.size + length, True))
        else:
            parts.append(Part(len(parts) + 1, offset, length, copied))
        offset += length
    return parts
