"""Looking at, and emptying, the cache of a source that no process holds. Nothing goes over the network.

The cache is locked while this works, as it would be by a mount, so a mount that starts at the same moment is refused
instead of having its folder taken from under it.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from .. import config
from ..cache.pins import Pins
from ..cache.tier_set import TierSet
from ..errors import UsageError
from .places import Places, places_of, tier_options
from .sources import SourceName


def pins(name: SourceName, settings: config.Settings) -> list[dict[str, Any]]:
    """The live pins, as `forebay pins` shows them."""
    with _locked(name, settings) as (_, found):
        return [asdict(label) for label in found.list()] if found is not None else []


def unpin(name: SourceName, settings: config.Settings, ids: Sequence[str], owner: str | None) -> list[str]:
    """End those leases; the ids of those that were there."""
    with _locked(name, settings) as (_, found):
        if found is None:
            return []
        wanted = [pin.id for pin in found.list() if pin.id in ids or (owner is not None and pin.owner == owner)]
        return [pin_id for pin_id in wanted if found.remove(pin_id)]


def free(name: SourceName, settings: config.Settings, *, also_pinned: bool) -> dict[str, Any]:
    """Remove the cache folders of a source. Refused while a lease holds part of them, unless `also_pinned`."""
    with _locked(name, settings) as (tiers, found):
        if tiers is None or found is None:
            return {"source": name.text, "freed_bytes": 0, "freed_objects": 0, "pinned_objects": 0}
        held = found.list()
        if held and not also_pinned:
            raise UsageError(
                f"{len(held)} leases hold cached data of {name.text} ({', '.join(sorted({pin.owner for pin in held}))})",
                remedy="end them with `forebay unpin`, or free it --also-pinned",
            )
        stats = [tier.stats() for tier in (tiers.ram, *tiers.ssd) if tier is not None]
        _remove(places_of(name.folder, settings))
        return {
            "source": name.text,
            "freed_bytes": sum(one.used_bytes for one in stats),
            "freed_objects": sum(one.entries for one in stats),
            "pinned_objects": 0,
        }


@contextlib.contextmanager
def _locked(name: SourceName, settings: config.Settings) -> Iterator[tuple[TierSet | None, Pins | None]]:
    """The tiers and pins, held; (None, None) if the source was never cached here."""
    places = places_of(name.folder, settings)
    if not any(folder.exists() for folder in (*places.ssd, *([places.ram] if places.ram else []))):
        yield None, None
        return
    ram, ssd = tier_options(_existing(places), settings, owner="forebay free")
    tiers = TierSet.open(ram, ssd, eviction=settings.eviction, pinned=lambda digest: True)
    try:
        yield tiers, Pins.open(places.pins)
    finally:
        tiers.close()


def _remove(places: Places) -> None:
    """Remove what is ours, and then the folders that have become empty."""
    for folder in (*places.ssd, places.pins, *([places.ram] if places.ram else [])):
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def _existing(places: Places) -> Places:
    """Without a RAM tier that is not there: looking must not make one."""
    ram = places.ram if places.ram is not None and places.ram.exists() else None
    return Places(ssd=places.ssd, pins=places.pins, ram=ram)
