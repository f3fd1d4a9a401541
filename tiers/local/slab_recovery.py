"""Small objects at restart, and after trouble: what is in the slabs, and what nobody accounts for."""

import os
from pathlib import Path

import numpy as np

from . import slab_file as fmt
from .entries import Entries
from .files import BLOCK_UNIT_BYTES, OpenFile, remove
from .health import Health
from .index import MAX_SLAB_NUMBER, SLAB_UNIT_BYTES, small_parts, unique_keys
from .slab_table import SlabTable
from .slabs import Slab, Slabs

_SLACK_BYTES = 64 * 1024


class SlabRecovery:
    """Finds and recounts; used while nobody else reads or writes, but for `reclaim`."""

    def __init__(self, folder: Path, slabs: Slabs, entries: Entries, health: Health) -> None:
        self._folder = folder
        self._slabs = slabs
        self._entries = entries
        self._health = health

    def recover(self) -> None:
        """Find the slabs and what lives in them, oldest first. Damaged slabs are removed."""
        firsts, seconds, locations, sizes = [], [], [], []
        for path in sorted(self._folder.glob("*.slab")):
            slab = self._open_slab(path)
            if slab is None:
                continue
            self._slabs.adopt(slab)
            handle = self._slabs.open(slab.number)
            if handle is None:
                continue
            records = fmt.read_records(handle.file)
            whole = fmt.verify_records(records)
            written = records["unit"] != 0
            damaged = int((written & ~whole).sum())
            if damaged:
                self._health.found_corrupt(f"{damaged} records of {path.name}", damaged)
            good = records[whole]
            slab.records = len(records)
            if len(good):
                ends = good["unit"].astype(np.int64) * SLAB_UNIT_BYTES + fmt.frame_sizes(good)
                slab.end = fmt.align(int(ends.max()))
            living = good[good["flag"] == fmt.LIVE]
            if not len(living):
                self._slabs.remove_if_empty(slab)
                continue
            slab.live = len(living)
            slab.live_bytes = int((fmt.frame_sizes(living) - living["identity"]).sum())
            firsts.append(living["first"])
            seconds.append(living["second"])
            locations.append(
                np.uint64(slab.number << 43)
                | living["unit"].astype(np.uint64) << np.uint64(21)
                | living["size"].astype(np.uint64)
            )
            sizes.append(living["size"].astype(np.int64))
        if not firsts:
            return
        first, second = np.concatenate(firsts), np.concatenate(seconds)
        location, size = np.concatenate(locations), np.concatenate(sizes)
        # An object that was written twice (a crash before the first was flagged dead) is kept once.
        kept = unique_keys(first, second)
        if kept is not None:
            for twin in np.setdiff1d(np.arange(len(first)), kept).tolist():
                number, offset, length = small_parts(int(location[twin]))
                self._slabs.kill(number, {offset: length})
            first, second, location, size = first[kept], second[kept], location[kept], size[kept]
        self._entries.restore(first, second, location, size)
        self._slabs.go_on_with_the_newest()

    def reclaim(self) -> None:
        """Free what a failed write or eviction left behind: frames that no entry points to. Raises OSError."""
        for slab in self._slabs.all():
            with slab.lock:
                handle = self._slabs.open(slab.number)
                if handle is None or slab.writing:
                    continue
                living = {small_parts(victim.location)[1] for victim in self._slabs.living(slab)}
                if len(living) != slab.live:
                    continue  # one was written a moment ago and its entry is not published yet: it is no left-over
                records = fmt.read_records(handle.file)
                table = SlabTable(records)
                dead: dict[int, int] = {}
                for record, (unit, size) in enumerate(records[["unit", "size"]].tolist()):
                    offset = unit * SLAB_UNIT_BYTES
                    if unit and offset not in living:
                        dead[offset] = size
                        if table.kill(offset) is not None:
                            self._slabs.flag_dead(handle, record)
                try:
                    for start, length in table.holes(dead, quiet=True):
                        handle.file.punch(start, length)
                finally:
                    self._slabs.measure_locked(slab)
            self._slabs.remove_if_empty(slab)

    def validate(self) -> None:
        """Recount what lives in each slab and what it allocates; nobody may be writing."""
        for slab in self._slabs.all():
            low, high = slab.number << 43, (slab.number + 1) << 43
            assert slab.writing == 0
            assert slab.live == len(self._entries.rows_where(low, high)), (slab.number, slab.live)
            if slab.path.exists():
                # A file system that allocates late (ext4) adds blocks for its own table of a file's pieces when it writes back.
                allocated = slab.path.stat().st_blocks * BLOCK_UNIT_BYTES
                assert abs(slab.allocated - allocated) <= _SLACK_BYTES, (slab.path, slab.allocated, allocated)

    def _open_slab(self, path: Path) -> Slab | None:
        try:
            number = int(path.stem)
            file = OpenFile(path)
        except (ValueError, OSError):
            return None
        head = os.pread(file.fd, fmt.SLAB_HEADER_BYTES, 0)
        if not 0 < number <= MAX_SLAB_NUMBER or not fmt.is_slab_header(head, number):
            if head:  # an empty file was being made when we stopped
                self._health.found_corrupt(f"the header of {path.name}")
            remove(path)
            return None
        slab = Slab(number, path)
        slab.allocated = file.allocated()
        return slab
