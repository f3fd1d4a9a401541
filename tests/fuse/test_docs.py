"""docs/fuse.md names files, operations and options that exist."""

import re
from pathlib import Path

from forebay.fuse_mount import open_directory
from forebay.fuse_mount.options import MountOptions
from forebay.fuse_mount.wire import OLDEST_MINOR

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/fuse.md").read_text()


def test_files_exist() -> None:
    named = set(re.findall(r"`(\w+\.py)`", TEXT)) | set(re.findall(r"\((\w+\.py)\)", TEXT))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / "fuse_mount" / name).exists()] == []
    assert (ROOT / "benchmarks/micro_fuse.py").exists()


def test_numbers_are_those_of_the_code() -> None:
    assert f"the first {open_directory.KNOWN_FIRST:,} entries" in TEXT
    assert f"protocol 7.{OLDEST_MINOR} (" in TEXT
    assert f"raises it to {MountOptions().read_ahead_bytes // 2**20} MiB" in TEXT
