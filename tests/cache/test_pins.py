"""Pins: membership, leases and clocks, and what is left of them after kill -9."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from forebay.cache import pin_set
from forebay.cache.pins import Pins
from forebay.tiers.version import ObjectVersion


def version(number: int) -> ObjectVersion:
    return ObjectVersion("s3://bucket", f"key-{number}", "etag", 1000)


class Clock:
    """Wall-clock and steady time, moved by hand."""

    def __init__(self) -> None:
        self.wall_s = 1_700_000_000.0
        self.steady_s = 100.0

    def pass_time(self, seconds: float) -> None:
        self.wall_s += seconds
        self.steady_s += seconds

    def open(self, folder: Path) -> Pins:
        return Pins.open(folder, wall_clock=lambda: self.wall_s, steady_clock=lambda: self.steady_s)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pin(pins: Pins, numbers: range, *, owner: str = "job-1", lease_s: float = 3600.0) -> str:
    made = pins.add(owner=owner, lease_s=lease_s, purpose="prefetch s3://bucket")
    for number in numbers:
        made.add(version(number))
    made.seal()
    return made.label.id


def test_a_version_is_pinned_while_any_lease_holds_it(tmp_path: Path, clock: Clock) -> None:
    pins = clock.open(tmp_path)
    first = pin(pins, range(10))
    second = pin(pins, range(5, 15), owner="job-2")
    assert [pins.count(version(n).digest) for n in (0, 7, 14, 15)] == [1, 2, 1, 0]
    assert pins.remove(first)
    assert not pins.remove(first)
    assert not pins.is_pinned(version(0).digest)
    assert pins.is_pinned(version(7).digest)
    assert [(label.id, label.owner, label.objects, label.size_bytes) for label in pins.list()] == [
        (second, "job-2", 10, 10_000)
    ]


def test_pins_survive_a_restart(tmp_path: Path, clock: Clock) -> None:
    made = pin(clock.open(tmp_path), range(1000))
    clock.pass_time(1800)
    pins = clock.open(tmp_path)
    assert all(pins.is_pinned(version(n).digest) for n in range(1000))
    assert not any(pins.is_pinned(version(n).digest) for n in range(1000, 2000))
    clock.pass_time(1801)
    assert not pins.is_pinned(version(1).digest)
    assert pins.list() == []
    assert list(tmp_path.iterdir()) == []
    assert not pins.renew(made, 10.0)


def test_renewal_moves_the_end(tmp_path: Path, clock: Clock) -> None:
    pins = clock.open(tmp_path)
    made = pin(pins, range(3), lease_s=10.0)
    clock.pass_time(9)
    assert pins.renew(made, 100.0)
    clock.pass_time(50)
    assert pins.is_pinned(version(2).digest)
    assert clock.open(tmp_path).is_pinned(version(2).digest)


def test_a_clock_that_is_set_ends_no_lease_while_we_run(tmp_path: Path, clock: Clock) -> None:
    pins = clock.open(tmp_path)
    pin(pins, range(1), lease_s=60.0)
    clock.wall_s += 1e7
    assert pins.is_pinned(version(0).digest)
    clock.wall_s -= 2e7
    clock.steady_s += 61
    assert not pins.is_pinned(version(0).digest)


def test_a_clock_that_went_back_does_not_lengthen_a_lease(tmp_path: Path, clock: Clock) -> None:
    pin(clock.open(tmp_path), range(1), lease_s=60.0)
    clock.wall_s = 0.0
    pins = clock.open(tmp_path)
    clock.steady_s += 61
    assert not pins.is_pinned(version(0).digest)


def test_a_growing_set_is_in_force_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pin_set, "RECENT_KEYS", 64)
    pins = Pins.open(tmp_path)
    growing = pins.add(owner="me", lease_s=60.0)
    for number in range(1000):
        assert growing.add(version(number))
        assert pins.is_pinned(version(number).digest)
    assert not growing.add(version(5))
    assert len(growing) == 1000
    assert len(growing._runs) < 8
    growing.seal()
    assert all(pins.is_pinned(version(n).digest) for n in range(1000))
    assert (tmp_path / f"{growing.label.id}.keys").stat().st_size == 8000


def test_an_empty_pin_is_possible(tmp_path: Path) -> None:
    pins = Pins.open(tmp_path)
    pin(pins, range(0))
    assert not Pins.open(tmp_path).is_pinned(version(0).digest)


def test_a_pin_not_kept_leaves_no_files(tmp_path: Path) -> None:
    pins = Pins.open(tmp_path)
    guard = pins.add(owner="prefetch", lease_s=60.0, kept=False)
    guard.add(version(1))
    guard.seal()
    assert pins.is_pinned(version(1).digest)
    assert list(tmp_path.iterdir()) == []
    pins.remove(guard.label.id)
    assert not pins.is_pinned(version(1).digest)


def test_damage_is_reported_and_holds_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = pin(Pins.open(tmp_path), range(3))
    for name, text in [("a", "{"), ("b", "[]"), ("c", '{"format_version": 99}'), ("d", '{"format_version": 1}')]:
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "orphan.keys").write_bytes(bytes(8))
    pins = Pins.open(tmp_path)
    assert [label.id for label in pins.list()] == [kept]
    assert sum("cannot be read" in record.message for record in caplog.records) == 4
    assert not (tmp_path / "orphan.keys").exists()
    (tmp_path / f"{kept}.keys").unlink()
    assert Pins.open(tmp_path).list() == []


GROWING_CHILD = """
import sys
from pathlib import Path
from forebay.cache.pins import Pins
from forebay.tiers.version import ObjectVersion
growing = Pins.open(Path(sys.argv[1])).add(owner="child", lease_s=3600.0)
number = 0
while True:
    growing.add(ObjectVersion("s3://bucket", f"key-{number}", "etag", 1000))
    number += 1
    if number % 2048 == 0:
        print(number, flush=True)
"""


def test_kill_9_keeps_what_was_pinned(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", GROWING_CHILD, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(3):
            pinned = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
    (keys,) = tmp_path.glob("*.keys")
    with keys.open("ab") as file:
        file.write(b"torn")
    pins = Pins.open(tmp_path)
    assert all(pins.is_pinned(version(n).digest) for n in range(pinned))
    (label,) = pins.list()
    assert label.owner == "child"
    assert not label.sealed
