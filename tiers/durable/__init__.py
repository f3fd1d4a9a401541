"""Durable tiers: where dirty bytes are safe until the under store has them. The protocol is in `tier.py`."""

from .folder import FolderTier
from .tier import DurableFile, DurableTier, Room

__all__ = ["DurableFile", "DurableTier", "FolderTier", "Room"]
