"""Freed memory is kept while data comes in, and given back afterwards."""

import asyncio
import ctypes
import subprocess
import sys

import pytest

from forebay.daemon import memory


async def test_it_is_given_back_once_after_each_time_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    given_back: asyncio.Queue[int] = asyncio.Queue()

    class Libc:
        @staticmethod
        def malloc_trim(pad_bytes: int) -> None:
            loop.call_soon_threadsafe(given_back.put_nowait, pad_bytes)

    monkeypatch.setattr(memory, "IDLE_S", 0.01)
    monkeypatch.setattr(memory, "_libc", Libc)
    fetched_bytes = 0
    async with asyncio.timeout(60), memory.given_back_when_idle(lambda: fetched_bytes):
        await asyncio.sleep(0.05)
        assert given_back.empty(), "nothing was fetched yet"
        fetched_bytes = 1
        await given_back.get()
        await asyncio.sleep(0.05)
        assert given_back.empty(), "once is enough"
        fetched_bytes = 2
        await given_back.get()
    assert given_back.empty()


async def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "IDLE_S", 0.01)
    monkeypatch.setattr(memory, "_libc", object())
    memory.keep_freed_memory()
    async with memory.given_back_when_idle(lambda: 1):
        await asyncio.sleep(0.03)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="only with glibc")
def test_glibc_takes_the_settings() -> None:
    program = """
import ctypes
from forebay.daemon import memory

class Libc:
    malloc_trim = None
    mallopt = staticmethod(lambda name, value: print(name, value, libc.mallopt(name, value)))

libc, memory._libc = memory._libc, Libc
memory.keep_freed_memory()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n") == ["-8 1 1", "-3 33554432 1", "-1 1073741824 1", ""], done
