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
    names = os.listxattr(root / "file")
    values = {name.removeprefix("user.forebay."): os.getxattr(root / "file", name) for name in names}
    ino = (root / "file").stat().st_ino
    assert values == {
        "snapshot": b"abc", "store": b"test://store", "key": str(ino).encode(), "etag": f"etag-{ino}".encode(),
        "cached": b"0.50", "tier": b"ssd",
    }  # fmt: skip
    assert os.listxattr(root / "folder") == ["user.forebay.snapshot"]


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
    length = libc.listxattr(path, None, 0)
    assert length == sum(len(name) + 1 for name in os.listxattr(root / "file"))
    assert libc.listxattr(path, small, 3) == -1
    assert ctypes.get_errno() == errno.ERANGE
