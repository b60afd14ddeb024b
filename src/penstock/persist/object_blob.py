"""Blobs in an object store: one object per key, below ``<prefix>/blob/``."""

from __future__ import annotations

from penstock.persist.object_store import ObjectClient

_FOLDER = "blob/"


class ObjectBlob:
    """A `Blob` of the objects of `client`, which must be one that repeats its requests: keys are written once.

    Durable on return, as the store is. Failures are told apart as `ObjectClient` says.
    """

    def __init__(self, client: ObjectClient) -> None:
        self._client = client

    async def get(self, key: str) -> bytes | None:
        found = await self._client.get(_FOLDER + key)
        return None if found is None else found[0]

    async def set(self, key: str, value: bytes) -> None:
        await self._client.put(_FOLDER + key, value)

    async def delete(self, key: str) -> int | None:
        """Two requests: a store does not say what it removed. Racing deletions may both report the size.

        The second goes out for a missing object too: the answer to the first does not tell a missing bucket.
        """
        size = await self._client.size(_FOLDER + key)
        await self._client.delete(_FOLDER + key)
        return size

    async def list_prefix(self, prefix: str) -> list[tuple[str, int]]:
        return [(name.removeprefix(_FOLDER), size) for name, size in await self._client.list(_FOLDER + prefix)]

    async def close(self) -> None:
        self._client.close()
