"""A generator of synthetic manifests: what a large dataset of images looks like, line by line, always the same.

    python -m forebay.benchmarks.manifests 1000000 /tmp/million.jsonl

Paths are `train/class-0042/img-0042017.jpg`, a thousand to a folder and in order; sizes vary around 110 KB; etags are MD5 sums;
labels are a class (one to a folder) and a quality from 0 to 9. `--shuffle` puts the lines in a random order.
"""

import argparse
import hashlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path

FILES_PER_FOLDER = 1000
FILES_PER_CLASS = 5000


def manifest_lines(numbers: Iterator[int] | range, *, revision: int = 0) -> Iterator[str]:
    """One line per number. Another `revision` gives the same paths other contents (etags, sizes)."""
    for number in numbers:
        digest = hashlib.md5(b"%d/%d" % (number, revision), usedforsecurity=False).hexdigest()
        size = 50_000 + int(digest[:4], 16) * 2
        folder = number // FILES_PER_FOLDER
        label = number // FILES_PER_CLASS
        yield (
            f'{{"url":"s3://data/train/class-{folder:06}/img-{number:09}.jpg","size":{size},"etag":"{digest}",'
            f'"labels":{{"class":"class-{label:05}","quality":{number % 10}}}}}\n'
        )


def write_manifest(path: Path, numbers: Iterator[int] | range, *, revision: int = 0) -> None:
    with path.open("w") as file:
        file.writelines(manifest_lines(numbers, revision=revision))


def main() -> None:
    parser = argparse.ArgumentParser(description="write a synthetic manifest")
    parser.add_argument("count", type=int)
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--shuffle", action="store_true", help="random order (of a fixed seed)")
    arguments = parser.parse_args()
    numbers: Iterator[int] | range = range(arguments.count)
    if arguments.shuffle:
        order = list(numbers)
        random.Random(1).shuffle(order)
        numbers = iter(order)
    if arguments.path is None:
        sys.stdout.writelines(manifest_lines(numbers))
    else:
        write_manifest(arguments.path, numbers)


if __name__ == "__main__":
    main()
