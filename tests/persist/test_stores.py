"""One conformance suite over every blob store and every consensus store."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from obstore.store import MemoryStore

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
    masked,
    open_blob,
    open_consensus,
)
from penstock.persist.object_blob import ObjectBlob
from penstock.persist.object_consensus import ObjectConsensus
from penstock.persist.object_store import ObjectClient
from penstock.persist.url import has_secret
from penstock.runtime import Determinate, ExternalError, Indeterminate
from tests.persist import blob_suite, consensus_suite
from tests.persist.race import race_processes

BLOBS: dict[str, Callable[[Path], Blob]] = {
    "mem": lambda _: MemBlob(),
    "file": lambda path: FileBlob(path / "blob"),
    "objects in memory": lambda _: ObjectBlob(ObjectClient(MemoryStore(), "memory")),
    "reliable": lambda _: UnreliableBlob(MemBlob(), 1, happens=1, answer_lost=0),
}
CONSENSUSES: dict[str, Callable[[Path], Consensus]] = {
    "mem": lambda _: MemConsensus(),
    "sqlite": lambda path: SqliteConsensus(path / "consensus.db"),
    "objects in memory": lambda _: ObjectConsensus(ObjectClient(MemoryStore(), "memory")),
    "reliable": lambda _: UnreliableConsensus(MemConsensus(), 1, happens=1, answer_lost=0),
}


@asynccontextmanager
async def closing(*stores: Blob | Consensus) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for store in stores:
            await store.close()


@pytest.mark.parametrize("kind", BLOBS)
@pytest.mark.parametrize("case", blob_suite.CASES)
def test_blob(kind: str, case: Callable[[Blob], Awaitable[None]], tmp_path: Path) -> None:
    async def main() -> None:
        blob = BLOBS[kind](tmp_path)
        async with closing(blob):
            await case(blob)

    asyncio.run(main())


@pytest.mark.parametrize("kind", CONSENSUSES)
@pytest.mark.parametrize("case", consensus_suite.CASES)
def test_consensus(kind: str, case: Callable[[Consensus], Awaitable[None]], tmp_path: Path) -> None:
    async def main() -> None:
        store = CONSENSUSES[kind](tmp_path)
        async with closing(store):
            await case(store)

    asyncio.run(main())


def test_two_handles_on_one_location_agree(tmp_path: Path) -> None:
    async def main() -> None:
        blobs = [FileBlob(tmp_path / name) for name in ("b", "b", "other")]
        sqlites = [SqliteConsensus(tmp_path / name) for name in ("c.db", "c.db", "other.db")]
        here, there = MemoryStore(), MemoryStore()
        async with closing(*blobs, *sqlites):
            await blob_suite.agrees_between_handles(*blobs)
            await consensus_suite.agrees_between_handles(*sqlites)
            await blob_suite.agrees_between_handles(*(ObjectBlob(ObjectClient(s, "")) for s in (here, here, there)))
            await consensus_suite.agrees_between_handles(
                *(ObjectConsensus(ObjectClient(s, "")) for s in (here, here, there))
            )
        again = FileBlob(tmp_path / "b")
        async with closing(again):
            assert await again.list_prefix("") == [("s/stays", 1)]

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["file", "objects in memory"])
def test_closed_blob_refuses(kind: str, tmp_path: Path) -> None:
    asyncio.run(blob_suite.refuses_when_closed(BLOBS[kind](tmp_path)))


def test_processes_race_for_versions_in_one_sqlite_file(tmp_path: Path) -> None:
    race_processes(f"sqlite:{tmp_path}/c.db")


def test_a_deletion_in_a_directory_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    async def main() -> None:
        blob = FileBlob(tmp_path / "new" / "deep")
        async with closing(blob):
            assert {str(tmp_path), str(tmp_path / "new")} <= set(synced), "the directories themselves are durable first"
            await blob.set("s/a", b"x")
            synced.clear()
            assert await blob.delete("s/a") == 1
            assert synced == [str(tmp_path / "new" / "deep" / "s")]
            synced.clear()
            assert await blob.delete("s/a") is None
            assert synced == []

    monkeypatch.setattr(os, "fsync", watched)
    asyncio.run(main())


def test_changes_of_a_directory_share_what_makes_them_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes it while it is being synced waits for the next time, which does for all of them."""
    begun, go_on = threading.Event(), threading.Event()
    keys = [f"s/{number}" for number in range(4)]
    gone_by_then: list[int] = []

    def watched(descriptor: int) -> None:
        gone_by_then.append(len(keys) - len(os.listdir(tmp_path / "s")))
        begun.set()
        assert go_on.wait(10)

    async def main() -> None:
        blob = FileBlob(tmp_path, threads=4)
        async with closing(blob):
            for key in keys:
                await blob.set(key, b"x")
            monkeypatch.setattr(os, "fsync", watched)
            first = asyncio.create_task(blob.delete(keys[0]))
            await asyncio.to_thread(begun.wait, 10)
            others = [asyncio.create_task(blob.delete(key)) for key in keys[1:]]
            async with asyncio.timeout(10):
                while blob._syncs[tmp_path / "s"]._changes < 2 * len(keys):  # noqa: ASYNC110 it has no event
                    await asyncio.sleep(0)
            assert not any(task.done() for task in (first, *others)), "nobody is told before it is durable"
            others.pop().cancel()  # changes nothing for the others
            go_on.set()
            assert await asyncio.gather(first, *others) == [1] * 3
        assert gone_by_then == [1, 4]

    asyncio.run(main())


def test_a_deletion_that_may_not_be_durable_is_an_error_until_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = 0
    real = os.fsync

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk has failed")

    def counting(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        real(descriptor)

    async def main() -> None:
        blob = FileBlob(tmp_path)
        async with closing(blob):
            await blob.set("s/a", b"x")
            monkeypatch.setattr(os, "fsync", failing)
            for _ in range(2):
                with pytest.raises(Indeterminate, match="s/a"):
                    await blob.delete("s/a")
            monkeypatch.setattr(os, "fsync", counting)
            for _ in range(2):
                assert await blob.delete("s/a") is None
            assert synced == 1

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
    for url in (
        "",
        "s3:bucket",
        "s3://",
        "file:",
        "sqlite:x",
        "file://host/x",
        "ftp://host/x",
        "s3://[bucket/x",
        "gs:///x",
    ):
        with pytest.raises(ValueError):
            open_blob(url)
    for url in ("", "file:x", "sqlite:", "postgress://host/db", "s3://", "http://[x"):
        with pytest.raises(ValueError):
            open_consensus(url)
    with pytest.raises(ValueError, match="no conditional replacement; use sqlite:FILE"):
        open_consensus("file:/some/where")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("s3://bucket/x?endpoint=nowhere", "must be a http:// or https:// URL"),
        ("s3://bucket/x?regoin=eu", "unknown setting regoin; there are endpoint, region"),
        ("s3://key:hunter2@bucket/x", "names no bucket"),
        ("s3://bucket//x?secret_access_key=hunter2", "empty segment"),
        ("s3://bucket/x?op_timeout=3&secret_access_key=hunter2", "duration with a unit"),
        ("gs://bucket/x?requests_max=0&service_account_key=hunter2", "whole number from 1"),
        ("gs://bucket/x?service_account=/no/such/file", "cannot be opened"),
        ("az://container/x?skip_signature=maybe&account_key=hunter2", "true or false"),
        ("s3://bucket/x?endpoint=http://h&secret_access_key=hun#ter2", "%23"),
    ],
)
def test_settings_of_object_stores_that_can_never_work_are_refused(url: str, complaint: str) -> None:
    for opening in (open_blob, open_consensus):
        with pytest.raises(ValueError, match=complaint) as caught:
            opening(url)
        assert "ter2" not in str(caught.value)


def test_object_stores_are_opened_without_connecting() -> None:
    async def main() -> None:
        for url in (
            "s3://bucket/a/b?region=eu-west-1&access_key_id=a&secret_access_key=b&virtual_hosted_style_request=true",
            "gs://bucket?skip_signature=true",
            "az://container/x?account_name=a&account_key=Zm9v&op_timeout=5s&attempt_timeout=500ms",
        ):
            await open_blob(url).close()
            await open_consensus(url).close()

    asyncio.run(main())


def test_urls_are_shown_without_their_secrets() -> None:
    assert (
        masked("postgres://me:pw@h:5/db?sslpassword=x&pool_max=3")
        == "postgres://me:***@h:5/db?sslpassword=***&pool_max=3"
    )
    assert masked("s3://b/p?secret_access_key=x&access%5Fkey_id=y&region=z") == (
        "s3://b/p?secret_access_key=***&access%5Fkey_id=***&region=z"
    )
    assert masked("az://c/p?sas_key=x") == "az://c/p?sas_key=***"
    assert masked("file:/some/where") == "file:/some/where"
    assert has_secret("az://c/p?sas_key=x")
    assert not has_secret("file:/some/where")
    assert not has_secret("s3://b/p?region=eu")


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("obstore", "psycopg"):
        monkeypatch.setitem(sys.modules, module, None)
    for module in ("postgres", "postgres_pool", "object_store", "object_blob", "object_consensus"):
        monkeypatch.delitem(sys.modules, f"penstock.persist.{module}", raising=False)
    with pytest.raises(ValueError, match=r"pip install 'penstock\[objects\]'"):
        open_blob("s3://bucket/x")
    with pytest.raises(ValueError, match=r"pip install 'penstock\[postgres\]'"):
        open_consensus("postgres://host/db")


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


@pytest.mark.parametrize("source", [7, random.Random(7)])
def test_unreliable_stores_fail_by_their_probabilities(source: int | random.Random) -> None:
    async def main() -> None:
        inner = MemConsensus()
        store = UnreliableConsensus(inner, source, happens=0.5, answer_lost=0.25)
        outcomes: Counter[type[BaseException] | None] = Counter()
        happened = 0
        for number in range(400):
            outcome: type[BaseException] | None = None
            try:
                await store.compare_and_set(f"k{number}", Versioned(SeqNo(0), b""))
            except ExternalError as error:
                outcome = type(error)
            outcomes[outcome] += 1
            effect = await inner.head(f"k{number}") is not None
            happened += effect
            assert effect if outcome is None else True
            assert not effect if outcome is Determinate else True
        assert 110 < outcomes[None] < 190
        assert 110 < outcomes[Determinate] < 190
        assert 60 < outcomes[Indeterminate] < 140
        assert 150 < happened < 250, "half of the lost answers are to calls that happened"
        assert store.faults.injected == 400 - outcomes[None]

    asyncio.run(main())


def test_unreliable_stores_can_be_fully_on_and_fully_off() -> None:
    async def main() -> None:
        blob, consensus = UnreliableBlob(MemBlob(), 1), UnreliableConsensus(MemConsensus(), 1)
        for faults in (blob.faults, consensus.faults):
            faults.totally_unavailable()
        for _ in range(50):
            with pytest.raises(Indeterminate):
                await blob.set("s/a", b"x")
            with pytest.raises(Indeterminate):
                await consensus.compare_and_set("k", Versioned(SeqNo(0), b"x"))
        for faults in (blob.faults, consensus.faults):
            faults.totally_available()
        for _ in range(50):
            assert await blob.get("s/a") is None, "nothing happened"
            assert await consensus.head("k") is None, "nothing happened"
        consensus.faults.partially_available(0, 0)
        with pytest.raises(Determinate):
            await consensus.head("k")

    asyncio.run(main())
