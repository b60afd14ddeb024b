"""SELECT: where a query is answered, at what time, and from which collections.

Three ways. A query over nothing but constants and system relations is answered here by DataFusion. Everything else
is a peek on the session's cluster: its inputs are read from an index where the cluster has one (only the rows with
the wanted keys, where the filter fixes them) and from the shard otherwise, and the replica runs the query over them.

Holds come first, frontiers second: whoever looks at frontiers before it holds may see them compacted away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from penstock.adapter.key_lookups import Lookup
from penstock.adapter.session_api import Parameters, Rows
from penstock.adapter.system_rows import is_system
from penstock.adapter.timestamps import (
    FRESHEST_TABLE_WRITE,
    IMMEDIATELY,
    Choice,
    InputFrontiers,
    Isolation,
    When,
    WhenKind,
    choose_timestamp,
)
from penstock.adapter.value_rows import bound, declared_types
from penstock.compute.query import execute
from penstock.control import ClusterId, Constant, Frontiers, IndexRead, Peek, PeekInput, ReadHold, ShardRead, SinceError
from penstock.persist import ShardId
from penstock.replica.wire import to_ipc
from penstock.runtime import GlobalId, SqlError, Timestamp, conform
from penstock.sql import QueryPlan
from penstock.sql import statements as ast
from penstock.sql.items import CatalogItem, ItemKind

if TYPE_CHECKING:
    from penstock.adapter.coordinator import Coordinator
    from penstock.adapter.session import Session


@dataclass(frozen=True)
class Source:
    """How one collection is read: `id` is what is held, an index or the collection itself."""

    item: CatalogItem
    index: CatalogItem | None

    @property
    def id(self) -> GlobalId:
        return self.index.id if self.index is not None else self.item.id


class Reads:
    """Answers queries for all sessions."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._c = coordinator

    async def query(self, session: Session, statement: ast.Query, parameters: Parameters) -> Rows:
        """The answer to a query. Its batches release what they hold when they end or are closed."""
        plan = self._c.plan(session, statement.tree, declared_types(parameters.types))
        when = await self.when(session, statement.as_of)
        lookup = Lookup.of_query(plan, statement.tree, parameters)
        return Rows(plan.desc, await self.answer(session, plan, parameters, when, lookup))

    async def answer(
        self,
        session: Session,
        plan: QueryPlan,
        parameters: Parameters,
        when: When,
        lookup: Lookup | None = None,
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        """The rows of `plan` with `parameters`, conformed to its columns. `lookup`: what may fix keys of an index."""
        plan.check_count(len(parameters))
        transaction = session.open_transaction()
        user = {name: id_ for name, id_ in plan.inputs.items() if not is_system(id_)}
        if not user and not plan.temporal and when.timestamp is None:
            return self._here(session, bound(plan, parameters), Timestamp(0))
        if when is not FRESHEST_TABLE_WRITE:
            await session.flush_implicit()
            transaction.begin_read()
        sources = self.sources(session, user.values())
        cluster = self._c.cluster_of(session) if user else None
        by_key = self._rows_by_key(plan, sources, lookup)
        if by_key is None:
            plan = bound(plan, parameters)
        choice, holds = await self.choose(session, sources, when)
        session.seen = max(session.seen, choice.timestamp)
        if cluster is None:
            for hold in holds:
                hold.release()
            await self._c.oracle.wait_until_read(choice.timestamp)
            return self._here(session, plan, choice.timestamp)
        if by_key is not None:
            query, (inputs, columns) = None, by_key
        else:
            query, columns = plan.datafusion_sql, None
            inputs = {name: self._input(session, id_, sources, lookup) for name, id_ in plan.inputs.items()}
        peek = Peek(choice.timestamp, query, inputs, session.variables.max_result_bytes)
        return self._peek(session, ClusterId(cluster), peek, holds, plan.desc.arrow, choice.timestamp, columns)

    def sources(self, session: Session, ids: Collection[GlobalId]) -> dict[GlobalId, Source]:
        """How the session's cluster reads each of `ids`."""
        state = self._c.catalog.state
        cluster = self._c.cluster_of(session) if ids else None
        found: dict[GlobalId, Source] = {}
        for id_ in ids:
            item = state.items.get(id_)
            if item is None:
                raise SqlError("a collection that the query reads was dropped", sqlstate="42P01", detail=id_)
            indexes = [i for i in state.indexes_on.get(id_, ()) if i.cluster_id == cluster]
            usable = next((index for index in indexes if self._c.is_running(index.id)), None)
            if usable is None and item.shard_id is None:
                raise SqlError(f'view "{item.name[2]}" cannot be read: its index does not run', sqlstate="55000")
            found[id_] = Source(item, usable)
        return found

    async def when(self, session: Session, as_of: ast.AsOf | None) -> When:
        """The time that a statement asks for."""
        if as_of is None:
            return IMMEDIATELY
        if session.open_transaction().explicit and session.open_transaction().timestamp is not None:
            raise SqlError("AS OF cannot be used after the first read of a transaction", sqlstate="25001")
        timestamp = await self._c.timestamp_of(session, as_of.expression)
        return When(WhenKind.AT_LEAST if as_of.at_least else WhenKind.AT, timestamp)

    async def choose(
        self, session: Session, sources: Mapping[GlobalId, Source], when: When
    ) -> tuple[Choice, list[ReadHold]]:
        """A time at which all `sources` can be read, and holds there. In a block: the block's one time."""
        transaction = session.open_transaction()
        if transaction.explicit and transaction.timestamp is None and when is not FRESHEST_TABLE_WRITE:
            self._hold_timedomain(session)
        if transaction.explicit and when is not FRESHEST_TABLE_WRITE:
            return self._choose_in_block(session, sources, when)
        holds: list[ReadHold] = []
        try:
            holds.extend(self._acquire(source) for source in sources.values())
            choice = self._choose(session, sources, holds, when)
            for hold in holds:
                hold.downgrade(max(hold.since, choice.timestamp))  # type: ignore[arg-type]
        except BaseException:
            for hold in holds:
                hold.release()
            raise
        return choice, holds

    def _choose_in_block(
        self, session: Session, sources: Mapping[GlobalId, Source], when: When
    ) -> tuple[Choice, list[ReadHold]]:
        transaction = session.open_transaction()
        missing = [source for source in sources.values() if source.id not in transaction.holds]
        if missing:
            raise SqlError(
                "transactions can only reference objects that were there at their first read",
                sqlstate="25000",
                detail=", ".join(".".join(source.item.name) for source in missing),
                hint="Commit, and read it in a new transaction.",
            )
        held = [transaction.holds[source.id] for source in sources.values()]
        if transaction.timestamp is not None:
            when = When(WhenKind.AT, transaction.timestamp)
        choice = self._choose(session, sources, held, when)
        transaction.timestamp = choice.timestamp
        return choice, [hold.clone() for hold in held]

    def _choose(
        self, session: Session, sources: Mapping[GlobalId, Source], holds: Sequence[ReadHold], when: When
    ) -> Choice:
        inputs = {
            str(source.id): InputFrontiers(".".join(source.item.name), hold.since, self.frontiers(source).upper)
            for source, hold in zip(sources.values(), holds, strict=True)
        }
        return choose_timestamp(
            inputs,
            when,
            session.variables.isolation,
            oracle_read_ts=self._c.oracle.read_ts(),
            session_ts=session.seen,
        )

    def frontiers(self, source: Source) -> Frontiers:
        """Where a source can be read now."""
        if source.index is not None:
            return self._c.compute.frontiers(source.index.id)
        return self._c.storage.frontiers(source.item.id)

    def _hold_timedomain(self, session: Session) -> None:
        """Hold everything the session may read later in this block, at one time."""
        transaction = session.open_transaction()
        state = self._c.catalog.state
        readable = [item for item in state.items.values() if item.shard_id is not None]
        readable += [i for i in state.items.values() if i.kind is ItemKind.INDEX and self._c.is_running(i.id)]
        for item in readable:
            if item.id in transaction.holds:
                continue
            try:
                acquire = self._c.compute if item.kind is ItemKind.INDEX else self._c.storage
                transaction.holds[item.id] = acquire.acquire_hold(item.id)
            except (KeyError, SinceError):
                continue  # being created or dropped at this moment: not part of this block

    def _acquire(self, source: Source) -> ReadHold:
        try:
            if source.index is not None:
                return self._c.compute.acquire_hold(source.index.id)
            return self._c.storage.acquire_hold(source.item.id)
        except KeyError:
            name = ".".join(source.item.name)
            raise SqlError(f"{name} is being created or dropped", sqlstate="55000", hint="Try again.") from None

    def keys(self, source: Source, lookup: Lookup | None) -> pa.RecordBatch | None:
        """The keys of the source's index that the query is about; None: it may be any."""
        if source.index is None or lookup is None:
            return None
        return lookup.keys(source.item, self._c.catalog.state.index_key(source.index.id))

    def _rows_by_key(
        self, plan: QueryPlan, sources: Mapping[GlobalId, Source], lookup: Lookup | None
    ) -> tuple[dict[str, PeekInput], list[int]] | None:
        """Where the rows under some keys of an index are the answer: what to read, and the columns to take of it."""
        if len(plan.inputs) != 1 or len(sources) != 1 or lookup is None:
            return None
        ((name, id_),) = plan.inputs.items()
        source = sources[id_]
        keys = self.keys(source, lookup)
        if keys is None or source.index is None:
            return None
        columns = lookup.rows_of(source.item, self._c.catalog.state.index_key(source.index.id))
        return None if columns is None else ({name: IndexRead(source.index.id, keys)}, columns)

    def _input(
        self, session: Session, id_: GlobalId, sources: Mapping[GlobalId, Source], lookup: Lookup | None
    ) -> PeekInput:
        if is_system(id_):
            return Constant(_ipc(self._c.system.table(session, id_)))
        source = sources[id_]
        item = source.item
        assert item.desc is not None
        if source.index is not None:
            return IndexRead(source.index.id, self.keys(source, lookup))
        return ShardRead(
            ShardId(item.shard_id or ""),
            item.desc.arrow,
            item.kind is ItemKind.TABLE,
            comparisons=lookup.comparisons(item) if lookup is not None else (),
        )

    async def _peek(
        self,
        session: Session,
        cluster: ClusterId,
        peek: Peek,
        holds: Sequence[ReadHold],
        schema: pa.Schema,
        timestamp: Timestamp,
        columns: list[int] | None = None,
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        """The answer of the cluster; of its columns only `columns`, where they are given."""
        async with aclosing(self._c.compute.peek(cluster, peek, holds)) as batches:
            first = True
            async for batch in batches:
                if first and session.variables.isolation is Isolation.STRICT_SERIALIZABLE:
                    await self._c.oracle.wait_until_read(timestamp)
                first = False
                yield conform(batch if columns is None else batch.select(columns), schema)

    async def _here(self, session: Session, plan: QueryPlan, mz_now: Timestamp) -> AsyncGenerator[pa.RecordBatch, None]:
        """Answered in this process: nothing of it is stored."""
        tables = {name: self._c.system.table(session, id_) for name, id_ in plan.inputs.items()}
        batches = execute(
            plan.datafusion_sql,
            tables,
            mz_now,
            schema=plan.desc.arrow,
            result_bytes_max=session.variables.max_result_bytes,
            partitions=1,
        )
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            yield batch


def _ipc(table: pa.Table) -> bytes:
    return to_ipc(table.to_batches(), table.schema)
