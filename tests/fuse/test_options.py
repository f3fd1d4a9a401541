"""Nonsense is refused when the options are made."""

import pytest

from forebay.errors import UsageError
from forebay.fuse_mount.mount_table import parse
from forebay.fuse_mount.options import MountOptions


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"umask": 0o1000}, "umask 1000 is not between 000 and 777"),
        ({"uid": -1}, "must not be negative"),
        ({"read_ahead_bytes": -1}, "negative"),
        ({"lane_threads": 0}, "choose 1 to 64"),
        ({"max_inflight": 0}, "at least 1"),
        ({"max_inflight": 10, "max_waiting": 5}, "at most max_waiting"),
        ({"io_timeout_s": 0}, "must be positive"),
        ({"transport": "pigeon"}, "choose auto, lane or pyfuse3"),
    ],
)
def test_refused(choice: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MountOptions(**choice)  # type: ignore[arg-type]


def test_the_mount_table_is_read_as_it_is() -> None:
    table = (
        rb"36 35 0:44 / /mnt/with\040space\011and\134more rw,nosuid shared:1 master:2 - fuse.forebay s3://b\040x rw,user_id=0"
        + b"\n"
        rb"37 36 0:45 / /mnt/x ro - fuse.sshfs host: ro" + b"\nnonsense\n\n"
    )
    first, second = parse(table)
    assert (first.device, first.mountpoint, first.source) == ((0, 44), "/mnt/with space\tand\\more", "s3://b x")
    assert first.is_forebay
    assert second.is_fuse
    assert not second.is_forebay
