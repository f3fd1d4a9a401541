"""Several sources on one small cache disk: what nobody uses gives way, what somebody holds or pinned stays."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.tests.mount.conftest import content
from forebay.tests.support.command_line import CommandLine
from forebay.tests.tiers_local import disks

MIB = 1024 * 1024
DISK_BYTES = 100 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with disks.tmpfs(tmp_path / "disk", DISK_BYTES) as folder:
        yield folder


def source(tmp_path: Path, name: str, files: int) -> str:
    """A folder with so many files of 5 MiB, as a SOURCE."""
    folder = tmp_path / name
    folder.mkdir()
    for number in range(files):
        (folder / str(number)).write_bytes(content(number, 5 * MIB))
    return folder.as_uri()


def test_idle_caches_give_way_in_order(forebay: CommandLine, tmp_path: Path, disk: Path) -> None:
    options = ("--cache-dir", str(disk), "--ram-size", "0")
    pinned, older, newer = (source(tmp_path, name, 4) for name in ("pinned", "older", "newer"))
    assert forebay.json("prefetch", pinned, *options, "--pin", "--lease", "1h", "--owner", "job")["complete"]
    for one in (older, newer):
        assert forebay.json("prefetch", one, *options)["complete"]

    wanted = source(tmp_path, "wanted", 8)
    plan = forebay.json("prefetch", wanted, *options, "--dry-run")
    assert (plan["fits"], plan["asked_bytes"]) == (True, 40 * MIB)
    assert forebay("prefetch", newer, *options, "--check").returncode == 0, "a dry run has removed something"

    assert forebay.json("prefetch", wanted, *options)["complete"]
    assert forebay("prefetch", older, *options, "--check").returncode != 0
    for one in (pinned, newer, wanted):
        assert forebay("prefetch", one, *options, "--check").returncode == 0, one


def test_what_is_mounted_never_gives_way(forebay: CommandLine, tmp_path: Path, disk: Path) -> None:
    options = ("--cache-dir", str(disk), "--ram-size", "0")
    mounted = source(tmp_path, "mounted", 10)
    assert forebay.json("prefetch", mounted, *options)["complete"]
    where = forebay.mount(mounted, *options)
    wanted = source(tmp_path, "wanted", 10)
    assert forebay.json("prefetch", wanted, *options, "--dry-run")["fits"] is False
    assert forebay("prefetch", wanted, *options).returncode == 40
    assert forebay.json("info", where)["cached_bytes"] == 50 * MIB
