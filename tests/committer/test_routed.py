"""`RoutedConsensus`: one store by two ways, changed while operations are under way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from penstock.committer import InProcessConsensus, RoutedConsensus, WrongStore
from penstock.persist import CasResult, Consensus, MemConsensus, SeqNo, Versioned, open_consensus
from penstock.runtime import Determinate, Indeterminate
from tests.committer.batching import BatchingMemConsensus, version
from tests.persist.consensus_suite import admits_one_winner_per_version, conforms

URL = "mem:shared"


class Connection:
    """Somebody's own connections to `store`, which remain when these are closed; counts what goes over them."""

    def __init__(self, store: Consensus) -> None:
        self._store = store
        self.calls = 0
        self.closed = False
        self.gate: asyncio.Event | None = None

    async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
        await self._pass()
        return await self._store.head(key, linearized=linearized)

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        await self._pass()
        return await self._store.compare_and_set(key, new)

    async def scan(self, key: str, from_: SeqNo, limit: int = 1 << 60) -> list[Versioned]:
        await self._pass()
        return await self._store.scan(key, from_, limit)

    async def truncate(self, key: str, seqno: SeqNo) -> int:
        await self._pass()
        return await self._store.truncate(key, seqno)

    async def list_keys(self) -> list[str]:
        await self._pass()
        return await self._store.list_keys()

    async def close(self) -> None:
        self.closed = True

    async def _pass(self) -> None:
        assert not self.closed, "an operation over closed connections"
        self.calls += 1
        if self.gate is not None:
            await self.gate.wait()
            assert not self.closed, "closed under an operation"
        else:
            await asyncio.sleep(0)


class Ways:
    """A store, a committer before it, and whoever routes between them."""

    def __init__(self, store: Consensus) -> None:
        self.opened: list[Connection] = []
        self._store = store
        self.through = Connection(store)
        self.committer = InProcessConsensus(self.through)
        self.routed = RoutedConsensus(self.committer, URL, open_=self._open)

    def _open(self, url: str) -> Consensus:
        assert url == URL
        self.opened.append(Connection(self._store))
        return self.opened[-1]

    async def close(self) -> None:
        await self.routed.close()
        await self.committer.close()
        assert all(connection.closed for connection in self.opened)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


@pytest.mark.parametrize("direct", [False, True])
def test_both_ways_conform(direct: bool) -> None:
    async def main() -> None:
        for suite in (conforms, admits_one_winner_per_version):
            ways = Ways(MemConsensus())
            if direct:
                ways.routed.use_store()
            await suite(ways.routed)
            assert bool(ways.through.calls) is not direct
            await ways.close()

    asyncio.run(main())


def test_operations_go_where_the_way_leads_and_old_connections_are_closed_after_the_last_one() -> None:
    async def main() -> None:
        ways = Ways(MemConsensus())
        assert ways.routed.uses_committer
        await ways.routed.compare_and_set("s", version(0))
        assert (ways.through.calls, ways.opened) == (1, [])
        ways.routed.use_store()
        ways.routed.use_store()
        (direct,) = ways.opened
        assert not ways.routed.uses_committer
        await ways.routed.compare_and_set("s", version(1))
        assert (ways.through.calls, direct.calls) == (1, 1)
        direct.gate = asyncio.Event()
        slow = asyncio.ensure_future(ways.routed.head("s"))
        await until(lambda: direct.calls == 2)
        ways.routed.use_committer()
        assert await ways.routed.head("s") == version(1)
        assert not direct.closed, "an operation is still on its way"
        direct.gate.set()
        assert await slow == version(1)
        await until(lambda: direct.closed)
        ways.routed.use_store()
        assert await ways.routed.head("s") == version(1)
        assert len(ways.opened) == 2
        await ways.close()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(5))
def test_each_version_has_one_author_while_the_ways_change(seed: int) -> None:
    """What the committer remembers is old after each direct write; nobody is told that he has won who has not."""
    dice = random.Random(seed)

    async def main() -> None:
        store = BatchingMemConsensus()
        processes = [Ways(store) for _ in range(3)]
        won: list[tuple[int, bytes]] = []

        async def write(ways: Ways, name: int) -> None:
            for attempt in range(60):
                head = await ways.routed.head("s", linearized=dice.random() < 0.5)
                seqno = 0 if head is None else head.seqno + 1
                data = b"%d of %d" % (attempt, name)
                if await ways.routed.compare_and_set("s", version(seqno, data)) is CasResult.COMMITTED:
                    won.append((seqno, data))
                if dice.random() < 0.2:
                    (ways.routed.use_store if ways.routed.uses_committer else ways.routed.use_committer)()

        await asyncio.gather(*(write(ways, name) for name in range(4) for ways in processes))
        log = await store.scan("s", SeqNo(0))
        assert [(v.seqno, v.data) for v in log] == sorted(won)
        assert len(won) > 20
        assert sum(len(ways.opened) for ways in processes) > 10
        for ways in processes:
            await ways.close()

    asyncio.run(main())


def test_a_store_that_is_not_the_committers_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        ours = Ways(MemConsensus())
        with pytest.raises(WrongStore, match="knows nothing of s"):
            await ours.routed.check_store("s")
        for seqno in range(3):
            await ours.routed.compare_and_set("s", version(seqno))
        await ours.routed.check_store("s")

        foreign = RoutedConsensus(ours.committer, f"sqlite:{tmp_path}/c.db")
        with pytest.raises(ValueError, match="there is no file"):
            await foreign.check_store("s")
        await open_consensus(f"sqlite:{tmp_path}/c.db").close()
        with pytest.raises(WrongStore, match="not the store that the committer serves"):
            await foreign.check_store("s")
        foreign.use_store()
        for seqno in range(3):
            await foreign.compare_and_set("s", version(seqno, b"another"))
        with pytest.raises(WrongStore, match="not the store that the committer serves"):
            await foreign.check_store("s")
        await foreign.close()

        nowhere = RoutedConsensus(ours.committer, "")
        with pytest.raises(ValueError, match="not told where"):
            nowhere.use_store()
        with pytest.raises(ValueError, match="not told where"):
            await nowhere.check_store("s")
        assert nowhere.uses_committer
        await nowhere.close()
        await ours.close()

    asyncio.run(main())


def test_a_store_is_known_again_though_the_witness_moves_on_between_the_looks() -> None:
    class Busy(MemConsensus):
        """Each scan finds that the newest version was followed by another and truncated."""

        busy = 3

        async def scan(self, key: str, from_: SeqNo, limit: int = 1 << 60) -> list[Versioned]:
            if self.busy:
                self.busy -= 1
                await self.compare_and_set(key, version(from_ + 1))
                await self.truncate(key, SeqNo(from_ + 1))
            return await super().scan(key, from_, limit)

    async def main() -> None:
        ways = Ways(Busy())
        await ways.routed.compare_and_set("s", version(0))
        await ways.routed.check_store("s")
        assert await ways.routed.head("s") != version(0)
        await ways.close()

    asyncio.run(main())


def test_the_direct_way_reports_that_the_tables_are_gone_and_creates_none(postgres_url: str) -> None:
    url = f"{postgres_url}&table=routed_past_the_committer"

    async def main() -> None:
        committer = InProcessConsensus(open_consensus(url))
        await committer.compare_and_set("s", version(0))
        routed = RoutedConsensus(committer, url)
        await routed.check_store("s")
        routed.use_store()
        assert await routed.head("s") == version(0)
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("DROP TABLE routed_past_the_committer")
            routed.use_committer()
            routed.use_store()
            with pytest.raises(Determinate, match="42P01"):
                await routed.compare_and_set("s", version(0))
            found = connection.execute("SELECT to_regclass('routed_past_the_committer')").fetchone()
            assert found == (None,), "to create it silently would mask the loss of everything"
        await routed.close()
        await committer.close()

    asyncio.run(main())


def test_errors_of_either_way_are_told_as_they_are() -> None:
    class Failing(MemConsensus):
        async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
            raise Indeterminate("the store may be on fire")

    async def main() -> None:
        ways = Ways(Failing())
        for change in (ways.routed.use_committer, ways.routed.use_store):
            change()
            with pytest.raises(Indeterminate, match="on fire"):
                await ways.routed.head("s")
        ways.routed.use_committer()
        await until(lambda: ways.opened[0].closed)
        await ways.close()

    asyncio.run(main())
