"""Amazon S3 and the many servers that speak its protocol."""

from .store import S3Store

__all__ = ["S3Store"]
