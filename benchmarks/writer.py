"""The writing side of every benchmark, run as a process of its own; prints what `reader.py` prints.

Deliberately plain system calls. The bytes are incompressible and differ from file to file, so that no side can
save work that real data would cost.

    python writer.py sequential FILE SIZE_BYTES      in writes of 1 MiB, then fsync and close
    python writer.py files FOLDER COUNT SIZE_BYTES   create, write and close each; none is synced by us
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable

WRITE_BYTES = 1 << 20
POOL_BYTES = 64 << 20


def sequential(path: str, size_bytes: str) -> tuple[float, int, int]:
    pool = memoryview(random.randbytes(POOL_BYTES + WRITE_BYTES))
    left = int(size_bytes)
    operations = 0
    start = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    while left:
        # Another start each time, so that no two blocks of the file are the same.
        at = operations * 1_000_003 % POOL_BYTES
        left -= os.write(fd, pool[at : at + min(left, WRITE_BYTES)])
        operations += 1
    os.fsync(fd)
    os.close(fd)
    return time.perf_counter() - start, int(size_bytes), operations


def files(folder: str, count: str, size_bytes: str) -> tuple[float, int, int]:
    size = int(size_bytes)
    pool = memoryview(random.randbytes(size * 1024))
    start = time.perf_counter()
    for index in range(int(count)):
        fd = os.open(f"{folder}/f{index:07d}.bin", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        at = index * 1009 % (size * 1023)
        if os.write(fd, pool[at : at + size]) != size:
            raise OSError(f"short write to {folder}/f{index:07d}.bin")
        os.close(fd)
    return time.perf_counter() - start, size * int(count), int(count)


WORK: dict[str, Callable[..., tuple[float, int, int]]] = {"sequential": sequential, "files": files}


def main() -> None:
    seconds, total, operations = WORK[sys.argv[1]](*sys.argv[2:])
    cpu = os.times()
    print(json.dumps({"seconds": seconds, "bytes": total, "operations": operations, "cpu_s": cpu.user + cpu.system}))


if __name__ == "__main__":
    main()
