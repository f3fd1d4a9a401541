"""Starting the process for a source the way the settings say: in the background with a log file, or right here.

A process that only holds the cache (`forebay serve`, started for a Python program) gives way to a mount of the same
source: it is asked to end, and its clients find the mount's process instead.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import config
from ..client import registry
from ..client.control import Control
from ..errors import DaemonUnreachable, TierInUse
from . import launch, logs, places, sources

GIVE_WAY_TIMEOUT_S = 30.0

Ready = Callable[[dict[str, Any]], None]


def start(source: str, mountpoint: str | None, settings: config.Settings, *, ready: Ready) -> None:
    """Start it and call `ready`; in the foreground, return only at its end. Raises what kept it from coming up.

    If only the cache is to be held and some process holds it already, `ready` is told of that one.
    """
    name = sources.name_of(source, settings)
    mountpoint = os.path.abspath(mountpoint) if mountpoint is not None else None
    with registry.starting(name.folder):
        holder = registry.holder_of(places.places_of(name.folder, settings).all)
        if holder is not None and mountpoint is None and not settings.foreground:
            served = _description(holder)
        else:
            if holder is not None:
                _make_way(holder, name)
            if not settings.foreground:
                log_file = settings.log_file or default_log_file(name)
                served = launch.start(
                    launch.Request(source=source, mountpoint=mountpoint, settings=settings, log_file=log_file)
                )
    if settings.foreground:
        from . import process  # whoever starts a background process need not be able to be one

        logs.to_stderr(level=settings.log_level, form=settings.log_format)
        process.run(launch.Request(source=source, mountpoint=mountpoint, settings=settings), ready=ready)
    else:
        ready(served)


def default_log_file(name: sources.SourceName) -> Path:
    return config.default_state_dir() / f"{name.folder}.log"


def _description(holder: registry.Entry) -> dict[str, Any]:
    """What that process says of itself. Raises DaemonUnreachable if it is silent."""
    control = Control(holder.socket)
    try:
        served: dict[str, Any] = control.get("status")
    finally:
        control.close()
    return served


def _make_way(holder: registry.Entry, name: sources.SourceName) -> None:
    if holder.role != "serve":
        where = f" at {holder.mountpoint}" if holder.mountpoint else ""
        raise TierInUse(
            f"the cache of {name.text} is held by process {holder.pid}, the {holder.role} of {holder.source}{where}",
            remedy="unmount that first, or give this one a cache of its own (cache-name or cache-dir)",
        )
    control = Control(holder.socket)
    try:
        control.post("stop", {"reason": f"{name.text} is to be mounted"})
    except DaemonUnreachable:
        pass  # it ended just now
    finally:
        control.close()
    registry.wait_until_gone(holder, GIVE_WAY_TIMEOUT_S)
