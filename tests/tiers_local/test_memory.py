"""Memory for large I/O begins at a huge page, lies in huge pages where there are some, and knows who uses it."""

import ctypes
from pathlib import Path

import pytest

from forebay.tiers.memory import HUGE_PAGE_BYTES, HugeMemory

MIB = 1024 * 1024


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


@pytest.mark.parametrize("size_bytes", [1, MIB, 2 * MIB, 5 * MIB])
def test_it_is_aligned_and_large_enough(size_bytes: int) -> None:
    memory = HugeMemory(size_bytes)
    view = memory.view()
    assert len(view) == memory.size_bytes >= size_bytes
    assert address(view) % HUGE_PAGE_BYTES == 0
    view[0] = view[-1] = 1


def test_any_view_holds_it() -> None:
    memory = HugeMemory(1)
    steps = [memory.in_use]
    part = memory.view()[10:20][2:]
    steps.append(memory.in_use)
    other = memory.view()
    del part
    steps.append(memory.in_use)
    del other
    steps.append(memory.in_use)
    assert steps == [False, True, True, False]


def test_it_lies_in_huge_pages() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("this kernel has no transparent huge pages")
    memory = HugeMemory(4 * HUGE_PAGE_BYTES)
    view = memory.view()
    view[:] = bytes(len(view))
    start = address(view)
    inside = False
    huge_bytes = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            low, high = (int(part, 16) for part in first.split("-"))
            inside = low <= start < high
        elif inside and first == "AnonHugePages:":
            huge_bytes += int(line.split()[1]) * 1024
    assert huge_bytes >= HUGE_PAGE_BYTES  # the system may have had too few for all of it
