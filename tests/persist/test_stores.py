"""One conformance suite over every blob store and every consensus store."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock.persist import (
    Blob,
    CasResult,
    Consensus,
    FileBlob,
    MemBlob,
    MemConsensus,
    SeqNo,
    SqliteConsensus,
    StoreFull,
    UnreliableBlob,
    UnreliableConsensus,
    Versioned,
    open_blob,
    open_consensus,
)
from penstock.runtime import Determinate, ExternalError, Indeterminate
from tests.persist.consensus_suite import admits_one_winner_per_version, conforms

BLOBS: dict[str, Callable[[Path], Blob]] = {
    "mem": lambda _: MemBlob(),
    "file": lambda path: FileBlob(path / "blob"),
    "reliable": lambda _: UnreliableBlob(MemBlob(), 1, happens=1, answer_lost=0),
}
CONSENSUSES: dict[str, Callable[[Path], Consensus]] = {
    "mem": lambda _: MemConsensus(),
    "sqlite": lambda path: SqliteConsensus(path / "consensus.db"),
    "reliable": lambda _: UnreliableConsensus(MemConsensus(), 1, happens=1, answer_lost=0),
}


@asynccontextmanager
async def closing(store: Blob | Consensus) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await store.close()


@pytest.mark.parametrize("kind", BLOBS)
def test_blob(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        blob = BLOBS[kind](tmp_path)
        async with closing(blob):
            assert await blob.get("s1/a") is None
            assert await blob.delete("s1/a") is None
            assert await blob.list_prefix("") == []
            await blob.set("s1/a", b"one")
            await blob.set("s1/w/b c%/…", b"")
            await blob.set("s10/a", bytes(1 << 20))
            await blob.set("s1", b"bare")
            assert await blob.get("s1/a") == b"one"
            assert await blob.get("s1/w/b c%/…") == b""
            assert await blob.get("s1/w") is None, "a prefix is not an object"
            assert await blob.list_prefix("s1/") == [("s1/a", 3), ("s1/w/b c%/…", 0)]
            assert [key for key, _ in await blob.list_prefix("s1")] == ["s1", "s1/a", "s1/w/b c%/…", "s10/a"]
            assert await blob.list_prefix("s1/w") == [("s1/w/b c%/…", 0)]
            assert await blob.list_prefix("nothing/") == []
            await blob.set("s1/a", b"other")
            assert await blob.get("s1/a") == b"other"
            assert await blob.delete("s1/a") == 5
            assert await blob.get("s1/a") is None
            await asyncio.gather(*(blob.set(f"many/{i}", b"%d" % i) for i in range(50)))
            assert len(await blob.list_prefix("many/")) == 50

    asyncio.run(main())


@pytest.mark.parametrize("kind", CONSENSUSES)
def test_consensus(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        store = CONSENSUSES[kind](tmp_path)
        async with closing(store):
            await conforms(store)

    asyncio.run(main())


@pytest.mark.parametrize("kind", CONSENSUSES)
def test_consensus_admits_one_winner_per_version(kind: str, tmp_path: Path) -> None:
    async def main() -> None:
        store = CONSENSUSES[kind](tmp_path)
        async with closing(store):
            await admits_one_winner_per_version(store)

    asyncio.run(main())


def test_stores_survive_a_reopening_and_a_second_process(tmp_path: Path) -> None:
    async def main() -> None:
        blob, other_blob = open_blob(f"file:{tmp_path}/b"), open_blob(f"file:{tmp_path}/b")
        first, second = open_consensus(f"sqlite:{tmp_path}/c.db"), open_consensus(f"sqlite:{tmp_path}/c.db")
        await blob.set("s/a", b"x")
        assert await other_blob.get("s/a") == b"x"
        committed = 0
        for seqno in range(40):
            results = await asyncio.gather(
                first.compare_and_set("k", Versioned(SeqNo(seqno), b"1")),
                second.compare_and_set("k", Versioned(SeqNo(seqno), b"2")),
            )
            committed += results.count(CasResult.COMMITTED)
        assert committed == 40
        assert (await first.head("k")) == (await second.head("k"))
        for store in (blob, other_blob, first, second):
            await store.close()
        with pytest.raises(Determinate):
            await first.head("k")
        again = open_consensus(f"sqlite:{tmp_path}/c.db")
        assert len(await again.scan("k", SeqNo(0))) == 40
        await again.close()

    asyncio.run(main())


def test_urls() -> None:
    for url in ("", "s3:bucket", "file:", "sqlite:x", "file://host/x"):
        with pytest.raises(ValueError):
            open_blob(url)
    for url in ("", "file:x", "sqlite:", "postgress://host/db"):
        with pytest.raises(ValueError):
            open_consensus(url)


def test_full_sqlite_file_is_determinate_and_heals(tmp_path: Path) -> None:
    async def main() -> None:
        store = SqliteConsensus(tmp_path / "c.db")
        async with closing(store):
            await store.compare_and_set("k", Versioned(SeqNo(0), b"x"))
            pages = store._writing.execute("PRAGMA page_count").fetchone()[0]
            store._writing.execute(f"PRAGMA max_page_count={pages + 4}")
            small = Versioned(SeqNo(0), b"small")
            results = await asyncio.gather(
                store.compare_and_set("k", Versioned(SeqNo(1), bytes(1 << 20))),
                store.compare_and_set("fits", small),
                return_exceptions=True,
            )
            assert isinstance(results[0], StoreFull)
            assert "make room" in str(results[0])
            assert results[1] is CasResult.COMMITTED, "a neighbour in the same transaction is not failed"
            assert await store.head("k") == (0, b"x")
            store._writing.execute(f"PRAGMA max_page_count={pages + 4000}")
            assert await store.compare_and_set("k", Versioned(SeqNo(1), bytes(1 << 20))) is CasResult.COMMITTED

    asyncio.run(main())


def test_full_directory_is_determinate_and_heals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        blob = FileBlob(tmp_path)
        async with closing(blob):
            real = os.fsync

            def full(descriptor: int) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(os, "fsync", full)
            with pytest.raises(StoreFull, match="make room"):
                await blob.set("s/a", b"x")
            monkeypatch.setattr(os, "fsync", real)
            assert await blob.get("s/a") is None
            assert os.listdir(tmp_path / ".tmp") == []
            await blob.set("s/a", b"x")
            assert await blob.get("s/a") == b"x"

    asyncio.run(main())


def test_a_locked_file_is_determinate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.persist.sqlite._BUSY_TIMEOUT_MS", 10)

    async def main() -> None:
        store = SqliteConsensus(tmp_path / "c.db")
        async with closing(store):
            other = sqlite3.connect(tmp_path / "c.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Determinate, match="locked"):
                await store.compare_and_set("k", Versioned(SeqNo(0), b"x"))
            other.execute("ROLLBACK")
            other.close()
            assert await store.compare_and_set("k", Versioned(SeqNo(0), b"x")) is CasResult.COMMITTED

    asyncio.run(main())


def test_unreliable_stores_fail_by_their_probabilities() -> None:
    async def main() -> None:
        store = UnreliableConsensus(MemConsensus(), 7, happens=0.5, answer_lost=0.25)
        outcomes = {Determinate: 0, Indeterminate: 0, None: 0}
        for _ in range(400):
            try:
                await store.head("k")
                outcomes[None] += 1
            except ExternalError as error:
                outcomes[type(error)] += 1
        assert 110 < outcomes[None] < 190
        assert 110 < outcomes[Determinate] < 190
        assert 60 < outcomes[Indeterminate] < 140
        store.faults.happens, store.faults.answer_lost = 1, 0
        assert await store.head("k") is None

    asyncio.run(main())
