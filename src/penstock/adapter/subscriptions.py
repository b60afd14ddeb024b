"""SUBSCRIBE: a dataflow of its own on the session's cluster, whose changes stream to the client.

A subscription ends with its client, its UP TO, an error in its data, or the drop of something it reads.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from penstock.adapter.dataflows import DataflowBuilder
from penstock.adapter.session_api import Parameters, Rows
from penstock.adapter.subscribe import subscribe_desc, subscribe_rows
from penstock.adapter.system_rows import is_system
from penstock.compute import IndexImport
from penstock.control import ClusterId
from penstock.control.answers import SubscribeStream
from penstock.runtime import DONE, Frontier, GlobalId, SqlError, Timestamp
from penstock.sql import statements as ast

if TYPE_CHECKING:
    from penstock.adapter.coordinator import Coordinator
    from penstock.adapter.session import Session


@dataclass(frozen=True)
class Running:
    """A subscription that has a client. `reads`: every object it depends on; `since`: when it began."""

    process_id: int
    cluster_id: str
    since: Timestamp
    reads: frozenset[GlobalId]
    stream: SubscribeStream


class Subscriptions:
    """All subscriptions of one coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._c = coordinator
        self._numbers = itertools.count(1)
        self.running: dict[GlobalId, Running] = {}

    async def subscribe(self, session: Session, statement: ast.Subscribe, parameters: Parameters) -> Rows:
        """Start a subscription; its rows come as they happen, until the generator is closed."""
        await session.flush_implicit()
        plan = self._c.subscribe_plan(session, statement, parameters)
        if any(is_system(id_) for id_ in plan.inputs.values()):
            raise SqlError(
                "SUBSCRIBE to system relations is not supported",
                sqlstate="0A000",
                hint="Select from them again when you need their newest contents.",
            )
        if not plan.inputs:
            raise SqlError("SUBSCRIBE to a constant query is not supported", sqlstate="0A000", hint="Use SELECT.")
        ids = list(dict.fromkeys(plan.inputs.values()))
        sources = self._c.reads.sources(session, ids)
        when = await self._c.reads.when(session, statement.as_of)
        up_to = DONE
        if statement.up_to is not None:
            up_to = Frontier(await self._c.timestamp_of(session, statement.up_to))
        choice, chosen = await self._c.reads.choose(session, sources, when)
        holds = dict(zip((source.id for source in sources.values()), chosen, strict=True))
        try:
            as_of = choice.timestamp
            if up_to < as_of:
                raise SqlError(
                    f"subscription lower bound (`AS OF`) is greater than its upper bound (`UP TO`): {as_of} > {up_to}",
                    sqlstate="22000",
                )
            if int(up_to) == int(as_of):
                for hold in chosen:
                    hold.release()
                return Rows(subscribe_desc(plan.desc, progress=statement.progress), _no_rows(), _tag)
            id_ = GlobalId(f"t{next(self._numbers)}")
            cluster = self._c.cluster_of(session)
            direct = self._c.direct_collection(session, statement) is not None
            builder = DataflowBuilder(self._c.catalog.state, self._c.planner)
            description = builder.subscribe(
                id_,
                cluster,
                None if direct else self._c.planner.rel(self._c.catalog.state, plan),
                ids,
                plan.desc,
                as_of=as_of,
                with_snapshot=statement.snapshot,
                up_to=up_to,
            )
            for name, source in description.imports.items():
                held = source.index if isinstance(source, IndexImport) else name
                if held not in holds:
                    raise SqlError("an index was created or dropped meanwhile", sqlstate="40001", hint="Try again.")
        except BaseException:
            for hold in chosen:
                hold.release()
            raise
        stream = await self._c.compute.subscribe(ClusterId(cluster), description, holds)
        self.running[id_] = Running(session.process_id, cluster, self._c.clock.now_ms(), frozenset(ids), stream)
        desc = subscribe_desc(plan.desc, progress=statement.progress)
        return Rows(desc, self._rows(id_, stream, desc.arrow, as_of, statement), _tag)

    async def _rows(
        self, id_: GlobalId, stream: SubscribeStream, schema: pa.Schema, as_of: Timestamp, statement: ast.Subscribe
    ) -> AsyncGenerator[pa.RecordBatch, None]:
        try:
            rows = subscribe_rows(stream, schema, as_of, snapshot=statement.snapshot, progress=statement.progress)
            async for batch in rows:
                yield batch
        finally:
            self.running.pop(id_, None)
            await stream.aclose()

    def drop_dependents(self, dropped: Iterable[GlobalId], names: dict[GlobalId, str]) -> None:
        """End the subscriptions that read any of `dropped`, with an error that says what went."""
        gone = set(dropped)
        for running in self.running.values():
            for id_ in running.reads & gone:
                running.stream.fail(SqlError(f'"{names[id_]}" was dropped', sqlstate="42P01"))
                break


async def _no_rows() -> AsyncGenerator[pa.RecordBatch, None]:
    nothing: tuple[pa.RecordBatch, ...] = ()
    for batch in nothing:
        yield batch


def _tag(rows: int) -> str:
    return f"SUBSCRIBE {rows}"
