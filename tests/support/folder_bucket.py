"""A bucket in memory that is a file system inside, and careless like SeaweedFS: for tests of what is done at the same time.

Folders come into being with the first key below them. Putting looks first which of them are missing, and makes them afterwards: a marker
that was put in between is overwritten, and not listed any more. Deleting a marker looks first whether its folder is empty, and removes it
afterwards, with whatever was put into it in between. A deleted marker whose folder is full is no marker any more.
"""

from collections.abc import Mapping

from forebay.tests.support.multipart_bucket import MultipartBucket
from forebay.tiers.understore import Buffer, ObjectInfo


class FolderBucket(MultipartBucket):
    async def put(
        self, key: str, data: Buffer, *, metadata: Mapping[str, str] | None = None,
        if_match: str | None = None, if_absent: bool = False,
    ) -> ObjectInfo:  # fmt: skip
        missing = [folder for folder in _folders_above(key) if not self._below(folder)]
        info = await super().put(key, data, metadata=metadata, if_match=if_match, if_absent=if_absent)
        for folder in missing:
            self.objects.pop(folder, None)
        return info

    async def delete(self, key: str) -> bool:
        was_empty = key.endswith("/") and self._below(key) in ([], [key])
        is_over = await super().delete(key)
        if was_empty:
            for below in self._below(key):
                del self.objects[below]
        return is_over

    def _below(self, folder: str) -> list[str]:
        return [key for key in self.objects if key.startswith(folder)]


def _folders_above(key: str) -> list[str]:
    parts = key.rstrip("/").split("/")
    return ["/".join(parts[:depth]) + "/" for depth in range(1, len(parts))]
