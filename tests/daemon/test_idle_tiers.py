"""Which idle tiers go, in which order, and what never does."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from forebay import config
from forebay.cache.pins import Pins
from forebay.client import registry
from forebay.daemon import idle_tiers, machine, places
from forebay.daemon.idle_tiers import IdleTiers
from forebay.tiers.local.folder import FORMAT_NAME, FORMAT_VERSION

KIB = 1024
SIZE = 64 * KIB
FORMAT = json.dumps({"name": FORMAT_NAME, "version": FORMAT_VERSION})


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


def tier(base: Path, name: str, *, used_at: float, files: int = 4) -> Path:
    """A folder as a tier leaves it, with so many files of 64 KiB, used last at that second."""
    folder = base / name / "ssd"
    (folder / "extents" / "00").mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "format").write_text(FORMAT)
    for number in range(files):
        (folder / "extents" / "00" / str(number)).write_bytes(bytes(SIZE))
    for path in (folder / "extents", folder / "lock"):
        os.utime(path, (used_at, used_at))
    return folder


def idle(base: Path) -> IdleTiers:
    return IdleTiers(base, "ssd", base / "own" / "ssd", [base])


def test_the_one_used_longest_ago_goes_first_and_no_more_than_is_wanted(tmp_path: Path) -> None:
    newer, older = tier(tmp_path, "newer", used_at=2000), tier(tmp_path, "older", used_at=1000)
    own = tier(tmp_path, "own", used_at=0)
    tiers = idle(tmp_path)
    assert tiers.used_bytes() >= 8 * SIZE
    assert tiers.give_way(SIZE) >= SIZE
    assert not older.exists()
    assert newer.exists()
    left_over = list(tmp_path.glob(".going-*"))
    assert len(left_over) == 1
    # Another process goes on with what the first has begun, if that was killed.
    assert idle(tmp_path).give_way(1 << 30) >= 7 * SIZE
    assert not newer.exists()
    assert not list(tmp_path.glob(".going-*"))
    assert own.exists()


def test_what_is_leased_held_or_starting_stays(tmp_path: Path) -> None:
    leased, locked, starting, known = (
        tier(tmp_path, name, used_at=1000) for name in ("leased", "locked", "starting", "known")
    )
    Pins.open(tmp_path / "leased" / "pins").add(owner="job", lease_s=3600).seal()
    entry = registry.Entry(
        id="known", role="mount", pid=os.getpid(), source="s3://b", mountpoint=None, cache_folders=(str(known),),
        started_s=0.0, folder=str(registry.create_runtime_folder()),
    )  # fmt: skip
    registration = registry.Registration.publish(entry)
    with (locked / "lock").open() as lock, registry.starting("starting"):
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert idle(tmp_path).give_way(1 << 30) == 0
    registration.withdraw()
    assert all(folder.exists() for folder in (leased, locked, starting, known))
    assert idle(tmp_path).give_way(1 << 30) >= 12 * SIZE
    assert leased.exists()
    assert not any(folder.exists() for folder in (locked, starting, known))


def test_a_lease_that_has_ended_holds_nothing(tmp_path: Path) -> None:
    folder = tier(tmp_path, "once", used_at=1000)
    Pins.open(tmp_path / "once" / "pins").add(owner="job", lease_s=-1).seal()
    assert idle(tmp_path).give_way(1) > 0
    assert not folder.exists()


def test_what_is_no_tier_stays(tmp_path: Path) -> None:
    (tmp_path / "trees").mkdir()
    (tmp_path / "data" / "ssd").mkdir(parents=True)
    (tmp_path / "data" / "ssd" / "lock").touch()
    (tmp_path / "data" / "ssd" / "thesis.tex").write_text("years of work")
    assert idle(tmp_path).give_way(1 << 30) == 0
    assert (tmp_path / "data" / "ssd" / "thesis.tex").exists()


def test_nothing_is_looked_for_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiers = idle(tmp_path)
    assert tiers.give_way(1) == 0
    folder = tier(tmp_path, "late", used_at=1000)
    assert tiers.give_way(1) == 0
    monkeypatch.setattr(idle_tiers, "LOOK_AGAIN_S", 0.0)
    assert idle(tmp_path).give_way(1) > 0
    assert not folder.exists()


def test_idle_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 100 * SIZE)
    settings = config.Settings(ram_dir=tmp_path / "ram", cache_dir=(tmp_path / "cache",))
    mine = places.places_of("mine", settings)
    assert mine.ram is not None
    base = mine.ram.parent
    for number in range(4):
        folder = base / f"idle{number}"
        (folder / "slabs").mkdir(parents=True)
        (folder / "lock").touch()
        (folder / "format").write_text(FORMAT)
        (folder / "slabs" / "0").write_bytes(bytes(4 * SIZE))
        for path in (folder / "slabs", folder / "lock"):
            os.utime(path, (1000 + number, 1000 + number))
    places.bound_idle_memory(mine)
    left = sorted(folder.name for folder in base.iterdir() if not folder.name.startswith("."))
    assert left == ["idle2", "idle3"]
