"""Where the tiers of a source live on this machine, and how large they may be.

    <cache-dir>/<name>/ssd     an SSD tier in each cache folder
    <cache-dir>/<name>/pins    leases, in the first one
    <ram-dir>/forebay-<uid>/<name>   the RAM tier

<name> is made from the source, so that two buckets mount side by side with one setting of `cache-dir`, and a source finds
its cached data again. What stands in the settings in percent becomes bytes here, once, when the tiers open.

A tier outlives its process on purpose: a prefetch before the mount, or a mount that is replaced, must not cost a second
fetch. `forebay free SOURCE` gives the room back; idle_tiers.py says what happens without it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import amounts, config
from ..errors import ConfigError, ForebayError, UsageError
from ..tiers.local import TierOptions
from . import machine
from .idle_tiers import IdleTiers, allocated_bytes

MIN_RAM_TIER_BYTES = 16 * amounts.MIB
_RAM_PART_OF_MEMORY = 0.1
_RAM_PART_OF_TMPFS = 0.5
_MAX_OPEN_FILES = 4096


@dataclass(frozen=True)
class Places:
    """The folders of one source. `ram` is None when RAM is switched off."""

    ssd: tuple[Path, ...]
    pins: Path
    ram: Path | None

    @property
    def all(self) -> tuple[str, ...]:
        """Every tier folder as text, for the registry."""
        return tuple(str(folder) for folder in (*self.ssd, *((self.ram,) if self.ram else ())))


def places_of(name: str, settings: config.Settings) -> Places:
    """Where the tiers of the source called `name` live."""
    bases = settings.cache_dir or (config.default_cache_dir(),)
    folders = tuple(base / (settings.cache_name or name) for base in bases)
    no_ram = settings.ram_size is not None and settings.ram_size.of(1 << 60) == 0
    ram = None if no_ram else settings.ram_dir / f"forebay-{os.geteuid()}" / (settings.cache_name or name)
    return Places(ssd=tuple(folder / "ssd" for folder in folders), pins=folders[0] / "pins", ram=ram)


def tier_options(
    places: Places, settings: config.Settings, *, owner: str
) -> tuple[TierOptions | None, list[TierOptions]]:
    """(RAM tier, SSD tiers) with sizes in bytes. Raises ConfigError or UsageError for sizes that this machine cannot have."""
    soft_limit = machine.raise_open_file_limit()
    open_files = max(16, min(_MAX_OPEN_FILES, soft_limit // 4 // len(places.ssd)))
    ssd = [
        TierOptions(
            name="ssd",
            folder=folder,
            capacity_bytes=size_bytes,
            free_space_ratio=settings.free_space_ratio,
            owner=owner,
            max_open_files=open_files,
            neighbours=_idle_beside(folder, places),
        )
        for folder, size_bytes in _ssd_sizes(places.ssd, settings).items()
    ]
    if places.ram is None:
        return None, ssd
    ram_bytes = _ram_size(places.ram, settings)
    if ram_bytes < MIN_RAM_TIER_BYTES:
        return None, ssd
    # A tmpfs is not slower when it is full, so nothing need stay free beyond what its size already says.
    ram = TierOptions(
        name="ram",
        folder=places.ram,
        capacity_bytes=ram_bytes,
        free_space_ratio=min(settings.free_space_ratio, 0.02),
        owner=owner,
        max_open_files=open_files,
        neighbours=_idle_beside(places.ram, places),
    )
    return ram, ssd


def bound_idle_memory(places: Places) -> None:
    """What idle RAM tiers hold is memory that nobody uses: together they keep no more than one tier of the default size."""
    if places.ram is None:
        return
    idle = _idle_beside(places.ram, places)
    surplus = idle.used_bytes() - int(machine.memory_bytes() * _RAM_PART_OF_MEMORY)
    if surplus > 0:
        idle.give_way(surplus)


def _idle_beside(folder: Path, places: Places) -> IdleTiers:
    bases = [ssd.parent.parent for ssd in places.ssd]
    if folder == places.ram:
        return IdleTiers(folder.parent, "", folder, bases)
    return IdleTiers(folder.parent.parent, folder.name, folder, bases)


def _ssd_sizes(folders: tuple[Path, ...], settings: config.Settings) -> Mapping[Path, int]:
    """A percentage is of each disk, shared by the folders on it; bytes are shared by all folders evenly."""
    disks = {folder: machine.file_system_of(folder) for folder in folders}
    for folder, disk in disks.items():
        if disk.total_bytes == 0:
            _refuse(
                settings, "cache-dir", f"{folder} is on {disk.kind}, which holds no data", "choose a folder on a disk"
            )
    size = settings.cache_size
    if size.size_bytes is not None:
        total_bytes = sum({disk.mountpoint: disk.total_bytes for disk in disks.values()}.values())
        if size.size_bytes > total_bytes:
            _refuse(settings, "cache-size", f"{size} is more than the disks have ({amounts.format_size(total_bytes)})")
        return {folder: size.size_bytes // len(folders) for folder in folders}
    on_disk = [disk.mountpoint for disk in disks.values()]
    return {folder: size.of(disk.total_bytes) // on_disk.count(disk.mountpoint) for folder, disk in disks.items()}


def _ram_size(folder: Path, settings: config.Settings) -> int:
    place = machine.file_system_of(folder)
    memory_bytes = machine.memory_bytes()
    if settings.ram_size is None:
        # What other tiers in use have taken already is not there a second time.
        free_bytes = place.free_bytes + allocated_bytes(folder)
        return int(min(memory_bytes * _RAM_PART_OF_MEMORY, free_bytes * _RAM_PART_OF_TMPFS))
    wanted_bytes = settings.ram_size.of(memory_bytes)
    limit_bytes = min(memory_bytes, place.total_bytes)
    if wanted_bytes > limit_bytes:
        what = f"{settings.ram_dir} has" if limit_bytes == place.total_bytes else "the memory has"
        _refuse(settings, "ram-size", f"{settings.ram_size} is more than {what} ({amounts.format_size(limit_bytes)})")
    return wanted_bytes


def _refuse(settings: config.Settings, name: str, why: str, remedy: str = "give less") -> None:
    origin = settings.origin(name)
    failure: type[ForebayError] = UsageError if origin.startswith("--") else ConfigError
    raise failure(f"{origin}: {why}", remedy=remedy)
