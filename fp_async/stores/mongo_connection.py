"""The connection to MongoDB, its clock, and numbers in the order of insertion."""

from __future__ import annotations

from fp_async import processes
from fp_async.errors import StoreError
from fp_async.stores.mongo_documents import Documents, translated

_CLOCK_SECONDS = 10.0  # how long a look at the server's clock is counted on from


class Connection:
    """What a store and its fleet share. Belongs to one event loop."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._documents: Documents | None = None
        self._looked_at = float("-inf")
        self._ahead = 0.0
        self._last_seq = 0

    async def open(self) -> None:
        """Connect and make the indexes. Cancelled, nothing stays open."""
        await self.close()
        with translated(self.uri):
            documents = Documents(self.uri)
        try:
            with translated(self.uri):
                await documents.prepare()
        except BaseException:
            await documents.client.close()
            raise
        self._documents = documents

    async def close(self) -> None:
        """Let go of every connection."""
        documents, self._documents = self._documents, None
        if documents is not None:
            await documents.client.close()

    def require(self) -> Documents:
        """The collections. Raises StoreError where they are not open."""
        if self._documents is None:
            raise StoreError("the data store is not open")
        return self._documents

    async def now(self) -> float:
        """The server's clock, counted on by the machine's, which nothing sets back."""
        documents = self.require()
        before = processes.lease_clock()
        if before - self._looked_at > _CLOCK_SECONDS:
            time = (await documents.client.admin.command("hello"))["localTime"].timestamp()
            self._looked_at = processes.lease_clock()
            self._ahead = time - (before + self._looked_at) / 2
        return processes.lease_clock() + self._ahead

    def seq(self, now: float) -> int:
        """Numbers in the order of insertion: of one process strictly, of others by the clock."""
        self._last_seq = max(self._last_seq + 1, int(now * 1e6))
        return self._last_seq
