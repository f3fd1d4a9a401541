"""Forebay: a distributed dataset cache and storage gateway for AI training.

Object storage holds everything; training pods see a plain folder. `docs/architecture.md` is the map.
"""

__version__ = "0.1.0"
