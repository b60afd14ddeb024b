"""INSERT, UPDATE, DELETE and COPY FROM: rows into the transaction, the transaction into a group commit.

Blind inserts are buffered and take their tables' locks, shared, when they commit. What reads before it writes
(UPDATE, DELETE, INSERT of a query over tables) takes exclusive locks on all that it reads and writes *before* it
reads, at the freshest time, and keeps them until the transaction ends: nothing can come between its read and its
write.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from sqlglot import exp

from penstock.adapter import dml_plans, value_rows
from penstock.adapter.dml_plans import Planning, writable_table
from penstock.adapter.group_commit import Delta
from penstock.adapter.key_lookups import Lookup
from penstock.adapter.session_api import (
    Completed,
    CopyFormat,
    CopyIn,
    CopyOptions,
    Outcome,
    Parameters,
    Rows,
)
from penstock.adapter.system_rows import is_system
from penstock.adapter.timestamps import FRESHEST_TABLE_WRITE, IMMEDIATELY
from penstock.adapter.transaction import Transaction
from penstock.compute.query import execute
from penstock.persist import ShardId
from penstock.runtime import GlobalId, SqlError, Timestamp, conform
from penstock.sql import QueryPlan, RelationDesc, SqlType
from penstock.sql import statements as ast
from penstock.sql.dialect import parse_expression, tokenize
from penstock.sql.items import CatalogItem, ItemKind

if TYPE_CHECKING:
    from penstock.adapter.coordinator import Coordinator
    from penstock.adapter.session import Session


class Writes:
    """Carries out writes for all sessions."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._c = coordinator

    # -- INSERT --------------------------------------------------------------------------------------------------

    async def insert(self, session: Session, statement: ast.Insert, parameters: Parameters) -> Outcome:
        """Buffer the rows of an INSERT; with RETURNING answer with what it asks for."""
        transaction = session.open_transaction()
        table = writable_table(self._c.view(session), statement.table)
        given = value_rows.declared_types(parameters.types)
        plan = (
            None
            if value_rows.can_read(table, statement)
            else dml_plans.insert_query(self._planning(session, given), table, statement)
        )
        reads = plan is not None and any(not is_system(id_) for id_ in plan.inputs.values())
        if reads and transaction.explicit and table.id in transaction.writes:
            raise _written_already(table)
        transaction.begin_write("INSERT")
        if plan is None:
            texts = [value_rows.parameter_text(value) for value in parameters]
            batches = [value_rows.rows_of(table, statement, texts)]
        elif reads:
            await self._lock(session, [table.id, *plan.inputs.values()])
            batches = await self._freshest(session, plan, parameters)
        else:
            batches = await _all(await self._c.reads.answer(session, plan, parameters, IMMEDIATELY))
        deltas = [Delta.insert(_checked(table, batch)) for batch in batches]
        transaction.add(table.id, deltas)
        count = sum(len(delta.diffs) for delta in deltas)
        tag = f"INSERT 0 {count}"
        if not statement.returning:
            return Completed(tag)
        returning = self._returning(session, table, statement)
        rows = pa.Table.from_batches([delta.rows for delta in deltas], schema=_schema(table))
        answer = await asyncio.to_thread(_run, returning, rows)
        return Rows(returning.desc, _stream(answer), lambda _: tag)

    def _returning(self, session: Session, table: CatalogItem, statement: ast.Insert) -> QueryPlan:
        database, schema, name = (exp.to_identifier(part, quoted=True) for part in table.name)
        tree = exp.select(*(e.copy() for e in statement.returning)).from_(
            exp.Table(this=name, db=schema, catalog=database)
        )
        return self._planning(session, []).plan(tree)

    # -- UPDATE and DELETE ---------------------------------------------------------------------------------------

    async def update(self, session: Session, statement: ast.Update, parameters: Parameters) -> Outcome:
        """Replace rows by others, read and written as if at one moment."""
        table = writable_table(self._c.view(session), statement.table)
        plan = self._plan_change(session, statement, value_rows.declared_types(parameters.types))
        batches = await self._read_to_write(session, table, plan, statement, parameters)
        width = len(_schema(table))
        deltas: list[Delta] = []
        for batch in batches:
            old, new = _stored(table, batch), _columns(table, batch, width)
            deltas += [Delta.delete(old), Delta.insert(_checked(table, new))]
        session.open_transaction().add(table.id, deltas)
        return Completed(f"UPDATE {sum(batch.num_rows for batch in batches)}")

    async def delete(self, session: Session, statement: ast.Delete, parameters: Parameters) -> Outcome:
        """Take rows away, read and written as if at one moment."""
        table = writable_table(self._c.view(session), statement.table)
        plan = self._plan_change(session, statement, value_rows.declared_types(parameters.types))
        batches = await self._read_to_write(session, table, plan, statement, parameters)
        deltas = [Delta.delete(_stored(table, batch)) for batch in batches]
        session.open_transaction().add(table.id, deltas)
        return Completed(f"DELETE {sum(batch.num_rows for batch in batches)}")

    def _plan_change(
        self, session: Session, statement: ast.Update | ast.Delete, given: Sequence[SqlType | None]
    ) -> QueryPlan:
        """The plan of an UPDATE or a DELETE; kept with the statement."""
        planning = self._planning(session, given)
        table = writable_table(planning.catalog, statement.table)

        def build() -> QueryPlan:
            if isinstance(statement, ast.Update):
                return dml_plans.update_query(planning, table, statement)
            return dml_plans.delete_query(planning, table, statement)

        return self._c.planner.kept(statement, planning.catalog, given, build)

    async def _read_to_write(
        self,
        session: Session,
        table: CatalogItem,
        plan: QueryPlan,
        statement: ast.Update | ast.Delete,
        parameters: Parameters,
    ) -> list[pa.RecordBatch]:
        transaction = session.open_transaction()
        transaction.begin_write("UPDATE" if isinstance(statement, ast.Update) else "DELETE")
        written = self._base_tables([table.id, *plan.inputs.values()]) & transaction.writes.keys()
        if written:
            if transaction.explicit:
                raise _written_already(self._c.catalog.state.items[min(written)])
            await session.flush_implicit()
        await self._lock(session, [table.id, *plan.inputs.values()])
        return await self._freshest(session, plan, parameters, Lookup.of_change(statement, parameters))

    async def _freshest(
        self, session: Session, plan: QueryPlan, parameters: Parameters, lookup: Lookup | None = None
    ) -> list[pa.RecordBatch]:
        return await _all(await self._c.reads.answer(session, plan, parameters, FRESHEST_TABLE_WRITE, lookup))

    async def _lock(self, session: Session, ids: Sequence[GlobalId]) -> None:
        """Exclusive locks on every table below `ids`: what is read must not change until the write is done."""
        await self._c.locks.acquire(session, self._base_tables(ids), exclusive=True)

    def _base_tables(self, ids: Sequence[GlobalId]) -> set[GlobalId]:
        items = self._c.catalog.state.items
        found: set[GlobalId] = set()
        waiting = [id_ for id_ in ids if id_ in items]
        while waiting:
            item = items[waiting.pop()]
            if item.kind is ItemKind.TABLE:
                found.add(item.id)
            waiting.extend(item.uses)
        return found

    # -- COPY ----------------------------------------------------------------------------------------------------

    def copy_from(self, session: Session, statement: ast.CopyFrom) -> Outcome:
        """Where the rows of COPY FROM STDIN go."""
        session.open_transaction().begin_write("COPY")
        table = writable_table(self._c.view(session), statement.table)
        assert table.desc is not None
        positions = dml_plans.target_columns(table, statement.columns)
        desc = RelationDesc(tuple(table.desc.columns[i] for i in positions))
        sink = _TableSink(self, session, table, positions)
        options = statement.options
        return CopyIn(desc, CopyFormat(options.format.value), copy_options(options), sink, table.name[2])

    # -- commit --------------------------------------------------------------------------------------------------

    async def commit(self, session: Session, transaction: Transaction) -> None:
        """Make the buffered writes durable, at one time. Raises `SqlError` when they surely or possibly are not."""
        writes = {table: deltas for table, deltas in transaction.take_writes().items() if deltas}
        if not writes:
            return
        items = self._c.catalog.state.items
        gone = [table for table in writes if table not in items]
        if gone:
            raise SqlError("a table that this transaction wrote to was dropped", sqlstate="42P01")
        already = self._c.locks.held(session)
        await self._c.locks.acquire(session, [table for table in writes if table not in already], exclusive=False)
        try:
            shards = {ShardId(items[table].shard_id or ""): deltas for table, deltas in writes.items()}
            session.seen = max(session.seen, await self._c.committer.write(shards))
        finally:
            if not transaction.explicit:
                self._c.locks.release(session)

    # -- descriptions --------------------------------------------------------------------------------------------

    def describe(
        self, session: Session, statement: ast.Statement, given: Sequence[SqlType | None]
    ) -> tuple[Sequence[SqlType], RelationDesc | None]:
        """Types of parameters, and the columns of RETURNING."""
        planning = self._planning(session, given)
        if isinstance(statement, ast.Insert):
            table = writable_table(planning.catalog, statement.table)
            returning = self._returning(session, table, statement).desc if statement.returning else None
            if value_rows.can_read(table, statement):
                return value_rows.parameter_types(table, statement), returning
            return dml_plans.insert_query(planning, table, statement).parameters, returning
        assert isinstance(statement, ast.Update | ast.Delete)
        return self._plan_change(session, statement, given).parameters, None

    def check_defaults(self, session: Session, statement: ast.CreateTable, desc: RelationDesc) -> None:
        """Plan each default once. Raises what is wrong with it."""
        planning = self._planning(session, [])
        for column, definition in zip(desc.columns, statement.columns, strict=True):
            if definition.default_sql is not None:
                value = parse_expression(tokenize(definition.default_sql), definition.default_sql)
                plan = planning.plan(exp.select(dml_plans.cast(value, column.type)))
                if plan.inputs:
                    raise SqlError("cannot use subquery in DEFAULT expression", sqlstate="0A000")

    def _planning(self, session: Session, given: Sequence[SqlType | None]) -> Planning:
        return Planning(self._c.planner, self._c.view(session), self._c.plan_session(session), given)


class _TableSink:
    """Takes the rows of one COPY FROM: buffered, and part of the transaction once they are all there."""

    def __init__(self, writes: Writes, session: Session, table: CatalogItem, positions: Sequence[int]) -> None:
        self._writes = writes
        self._session = session
        self._table = table
        self._positions = list(positions)
        self._rows = 0
        self._kept: list[Delta] = []
        self._transaction = session.open_transaction()

    async def write(self, batch: pa.RecordBatch) -> None:
        """Add rows, in the columns that were asked for. SqlError 23502 for a NULL where none may be."""
        full = await self._filled(batch)
        self._kept.append(Delta.insert(_checked(self._table, full, before=self._rows)))
        self._rows += batch.num_rows
        if self._session.transaction is not self._transaction or self._transaction.failed:
            raise SqlError("the transaction of this COPY has ended", sqlstate="25P02")
        self._transaction.reserve(self._kept[-1].nbytes)

    async def finish(self) -> int:
        """Make the rows part of the transaction. Returns their number."""
        kept, self._kept = self._kept, []
        self._transaction.add(self._table.id, kept)
        return self._rows

    async def abort(self) -> None:
        """Forget the rows."""
        self._kept = []

    async def _filled(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`batch` with the columns that the client does not send: their defaults."""
        assert self._table.desc is not None
        by_position = dict(zip(self._positions, batch.columns, strict=True))
        arrays = []
        for position, column in enumerate(self._table.desc.columns):
            if position in by_position:
                arrays.append(by_position[position])
            elif self._table.defaults and self._table.defaults[position] is not None:
                value = dml_plans.default_of(self._table, position)
                plan = self._writes._planning(self._session, []).plan(exp.select(value))
                one = await asyncio.to_thread(_run, plan, None)
                arrays.append(pa.repeat(one.column(0)[0], batch.num_rows).cast(column.type.arrow))
            else:
                arrays.append(pa.nulls(batch.num_rows, column.type.arrow))
        fields = [column.field.with_nullable(True) for column in self._table.desc.columns]
        return pa.RecordBatch.from_arrays(
            [a.cast(f.type) if a.type != f.type else a for a, f in zip(arrays, fields, strict=True)],
            schema=pa.schema(fields),
        )


def copy_options(options: ast.CopyOptions) -> CopyOptions:
    """The statement's options as the server takes them."""
    if options.format is ast.CopyFormat.BINARY:
        return CopyOptions()
    csv = options.format is ast.CopyFormat.CSV
    return CopyOptions(
        delimiter=options.delimiter,
        null=options.null,
        quote=options.quote if csv else None,
        escape=options.escape if csv else None,
        header=options.header,
    )


def _written_already(table: CatalogItem) -> SqlError:
    return SqlError(
        f'the transaction has uncommitted writes to "{table.name[2]}", which this statement would have to read',
        sqlstate="0A000",
        hint="Commit first.",
    )


def _schema(table: CatalogItem) -> pa.Schema:
    assert table.desc is not None
    return table.desc.arrow


def _columns(table: CatalogItem, batch: pa.RecordBatch, start: int) -> pa.RecordBatch:
    """The columns of `batch` from `start` on as rows of `table`, NULLs not checked."""
    fields = [field.with_nullable(True) for field in _schema(table)]
    part = batch.select(list(range(start, start + len(fields))))
    return conform(part, pa.schema(fields))


def _stored(table: CatalogItem, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The first columns of `batch`, which are rows that the table has: they meet its constraints already."""
    schema = _schema(table)
    return conform(batch.select(list(range(len(schema)))), schema)


def _checked(table: CatalogItem, rows: pa.RecordBatch, *, before: int | None = None) -> pa.RecordBatch:
    """`rows` as rows of `table`. SqlError 23502 naming the column where a NULL may not be.

    `before`: how many rows of the same COPY came before these; the error then names the row.
    """
    assert table.desc is not None
    for column, array in zip(table.desc.columns, rows.columns, strict=True):
        if array.null_count and not column.nullable:
            raise SqlError(
                f'null value in column "{column.name}" of relation "{table.name[2]}" violates not-null constraint',
                sqlstate="23502",
                detail=None if before is None else f"COPY {table.name[2]}, row {before + 1 + _first_null(array)}",
            )
    return conform(rows, _schema(table))


def _first_null(column: pa.Array) -> int:
    return int(pc.index(column.is_null(), True).as_py())


def _run(plan: QueryPlan, rows: pa.Table | None) -> pa.Table:
    """A query over the rows of one statement, answered at once."""
    tables = dict.fromkeys(plan.inputs, rows) if rows is not None else {}
    schema = plan.desc.arrow
    batches = list(execute(plan.datafusion_sql, tables, Timestamp(0), schema=schema, partitions=1))
    return pa.Table.from_batches(batches, schema=schema)


async def _all(batches: AsyncGenerator[pa.RecordBatch, None]) -> list[pa.RecordBatch]:
    async with aclosing(batches):
        return [batch async for batch in batches]


async def _stream(table: pa.Table) -> AsyncGenerator[pa.RecordBatch, None]:
    for batch in table.to_batches():
        yield batch
