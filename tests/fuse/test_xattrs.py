"""`user.forebay.*`: what they say, and the size rules of getxattr and listxattr."""

import ctypes
import errno
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from forebay.tests.fuse.conftest import MountIt
from forebay.tests.support.static_view import StaticView
from forebay.tiers.version import ObjectVersion

libc = ctypes.CDLL(None, use_errno=True)


def facts(version: ObjectVersion) -> Mapping[str, str]:
    return {"cached": "0.50", "tier": "ssd"}


@pytest.fixture
def root(mount_it: MountIt) -> Path:
    view = StaticView({b"file": b"hello", b"folder/x": b""})
    view.extra_xattrs = {"user.forebay.snapshot": b"abc"}
    return mount_it(view, facts=facts).path


def test_what_they_say(root: Path) -> None:
    names = ("snapshot", "store", "key", "etag", "cached", "tier")
    values = {name: os.getxattr(root / "file", f"user.forebay.{name}") for name in names}
    ino = (root / "file").stat().st_ino
    assert values == {
        "snapshot": b"abc", "store": b"test://store", "key": str(ino).encode(), "etag": f"etag-{ino}".encode(),
        "cached": b"0.50", "tier": b"ssd",
    }  # fmt: skip
    assert os.getxattr(root / "folder", "user.forebay.snapshot") == b"abc"
    # In a list they would be copied to other files by programs that copy attributes.
    assert os.listxattr(root / "file") == os.listxattr(root / "folder") == []


@pytest.mark.parametrize("name", ["user.other", "user.forebay.nothing", "security.selinux", "trusted.x"])
def test_other_names_have_no_data(root: Path, name: str) -> None:
    with pytest.raises(OSError, match="No data") as caught:
        os.getxattr(root / "file", name)
    assert caught.value.errno == errno.ENODATA


def test_sizes(root: Path) -> None:
    path = os.fsencode(root / "file")
    name = b"user.forebay.store"
    assert libc.getxattr(path, name, None, 0) == len(b"test://store")
    small = ctypes.create_string_buffer(3)
    assert libc.getxattr(path, name, small, 3) == -1
    assert ctypes.get_errno() == errno.ERANGE
    exact = ctypes.create_string_buffer(12)
    assert libc.getxattr(path, name, exact, 12) == 12
    assert exact.raw == b"test://store"
    assert libc.listxattr(path, None, 0) == libc.listxattr(path, small, 3) == 0
