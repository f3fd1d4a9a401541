"""Buffers are used again when, and only when, nobody has a view of them."""

import threading

from forebay.tiers.local.read_buffers import BUFFER_BYTES, BUFFERS_PER_THREAD, ReadBuffers


def number_of(view: memoryview) -> int:
    return int.from_bytes(view[:8], "little")


def mark(view: memoryview, number: int) -> memoryview:
    """Write a number by which the buffer is known again."""
    view[:8] = number.to_bytes(8, "little")
    return view


def test_a_buffer_that_nobody_has_is_taken_again() -> None:
    buffers = ReadBuffers()
    view = mark(buffers.take(), 1)
    assert len(view) == BUFFER_BYTES
    del view
    assert number_of(buffers.take()) == 1


def test_a_slice_holds_its_buffer() -> None:
    buffers = ReadBuffers()
    part = mark(buffers.take(), 1)[4:100][:50]
    other = mark(buffers.take(), 2)
    assert part[:4] == bytes(4)
    del other
    assert number_of(buffers.take()) == 2
    del part
    assert number_of(buffers.take()) == 1


def test_only_so_many_are_kept() -> None:
    buffers = ReadBuffers()
    held = [mark(buffers.take(), number) for number in range(1, BUFFERS_PER_THREAD + 4)]
    assert [number_of(view) for view in held] == list(range(1, BUFFERS_PER_THREAD + 4))
    held.clear()
    again = [buffers.take() for _ in range(BUFFERS_PER_THREAD + 1)]
    assert [number_of(view) for view in again] == [*range(1, BUFFERS_PER_THREAD + 1), 0]


def test_threads_share_none() -> None:
    buffers = ReadBuffers()
    mark(buffers.take(), 1)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(number_of(buffers.take())))
    thread.start()
    thread.join()
    assert seen == [0]
    assert number_of(buffers.take()) == 1
