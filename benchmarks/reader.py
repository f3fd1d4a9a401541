"""The reading side of every benchmark, run as a process of its own so that its CPU time can be told apart.

Prints one JSON object: seconds, bytes, operations, cpu_s (this process), checksum (so that both sides prove
that they read the same). Deliberately plain system calls into one reused buffer.

    python reader.py sequential FILE [READ_BYTES]
    python reader.py random FILE COUNT SEED
    python reader.py files FOLDER            every file below, in sorted order
    python reader.py find FOLDER             every name below, with its attributes
    python reader.py list FOLDER             names of one folder, without attributes
    python reader.py stat FOLDER COUNT SEED  attributes of random files, by path
"""

import json
import os
import random
import sys
import time
import zlib
from collections.abc import Callable


def sequential(path: str, read_bytes: str = "1048576") -> tuple[int, int, int]:
    buffer = bytearray(int(read_bytes))
    total = operations = checksum = 0
    fd = os.open(path, os.O_RDONLY)
    while count := os.readv(fd, [buffer]):
        total += count
        operations += 1
        checksum = (checksum * 31 + buffer[0] + buffer[count - 1]) & 0xFFFFFFFF
    os.close(fd)
    return total, operations, checksum


def random_reads(path: str, count: str, seed: str) -> tuple[int, int, int]:
    fd = os.open(path, os.O_RDONLY)
    pages = os.fstat(fd).st_size // 4096
    choose = random.Random(int(seed))
    offsets = [choose.randrange(pages) * 4096 for _ in range(int(count))]
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    buffer = bytearray(4096)
    checksum = 0
    for offset in offsets:
        if os.preadv(fd, [buffer], offset) != 4096:
            raise OSError(f"short read at {offset}")
        checksum = (checksum * 31 + buffer[0] + buffer[4095]) & 0xFFFFFFFF
    os.close(fd)
    return 4096 * len(offsets), len(offsets), checksum


def files(folder: str) -> tuple[int, int, int]:
    paths = sorted(os.path.join(base, name) for base, _, names in os.walk(folder) for name in names)
    buffer = bytearray(1 << 20)
    total = checksum = 0
    start = time.perf_counter()
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        count = os.readv(fd, [buffer])
        os.close(fd)
        total += count
        checksum = zlib.adler32(buffer[:64], checksum)
    files.seconds = time.perf_counter() - start  # type: ignore[attr-defined]
    return total, len(paths), checksum


def find(folder: str) -> tuple[int, int, int]:
    total = operations = 0
    stack = [folder]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                operations += 1
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total, operations, 0


def names(folder: str) -> tuple[int, int, int]:
    with os.scandir(folder) as entries:
        return 0, sum(1 for _ in entries), 0


def stat(folder: str, count: str, seed: str) -> tuple[int, int, int]:
    choose = random.Random(int(seed))
    paths = sorted(os.path.join(base, name) for base, _, names in os.walk(folder) for name in names)
    wanted = [choose.choice(paths) for _ in range(int(count))]
    start = time.perf_counter()
    total = sum(os.stat(path).st_size for path in wanted)
    stat.seconds = time.perf_counter() - start  # type: ignore[attr-defined]
    return total, len(wanted), total & 0xFFFFFFFF


WORK: dict[str, Callable[..., tuple[int, int, int]]] = {
    "sequential": sequential,
    "random": random_reads,
    "files": files,
    "find": find,
    "list": names,
    "stat": stat,
}


def main() -> None:
    work = WORK[sys.argv[1]]
    start = time.perf_counter()
    total, operations, checksum = work(*sys.argv[2:])
    seconds = getattr(work, "seconds", time.perf_counter() - start)
    cpu = os.times()
    print(
        json.dumps(
            {
                "seconds": seconds,
                "bytes": total,
                "operations": operations,
                "cpu_s": cpu.user + cpu.system,
                "checksum": checksum,
            }
        )
    )


if __name__ == "__main__":
    main()
