"""A local tier: a folder that holds cached bytes. On tmpfs it is the RAM tier, on a disk the SSD tier."""

from .options import TierOptions
from .policy import EvictionPolicy, FifoPolicy
from .tier import LocalTier, TierStats

__all__ = ["EvictionPolicy", "FifoPolicy", "LocalTier", "TierOptions", "TierStats"]
