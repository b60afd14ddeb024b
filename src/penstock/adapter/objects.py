"""DDL: objects come to life durably first, then in the transactions log, then in the controllers; and go the same
way.

One DDL statement runs at a time. The catalog commit decides: what comes after it only brings the processes in line,
and is done again at the next start when it was interrupted. Dropping ends subscriptions with a message, tells the
replicas, and leaves the deletion of data to the storage controller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from sqlglot import exp

from penstock.adapter.create_sql import table_sql, view_sql
from penstock.adapter.dataflows import DataflowBuilder, acquire_inputs, collection_spec
from penstock.adapter.session_api import Completed, Outcome
from penstock.catalog import CatalogTransaction
from penstock.compute import DataflowDescription
from penstock.control import ClusterId, ClusterSpec, ReplicaId, ReplicaSpec
from penstock.persist import ShardId, new_shard_id
from penstock.runtime import Frontier, GlobalId, PenstockError, SqlError, Timestamp
from penstock.sql import RelationDesc
from penstock.sql import statements as ast
from penstock.sql.items import CatalogItem, ItemKind
from penstock.sql.statements import ObjectType, quote_ident
from penstock.sql.types import Column

if TYPE_CHECKING:
    from penstock.adapter.coordinator import Coordinator
    from penstock.adapter.session import Session

_KINDS = {
    ItemKind.TABLE: ObjectType.TABLE,
    ItemKind.VIEW: ObjectType.VIEW,
    ItemKind.MATERIALIZED_VIEW: ObjectType.MATERIALIZED_VIEW,
    ItemKind.INDEX: ObjectType.INDEX,
}


class Objects:
    """Carries out DDL for all sessions."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._c = coordinator
        self._one_at_a_time = asyncio.Lock()

    async def execute(self, session: Session, statement: Any) -> Outcome:
        """Run one DDL statement to its end: once the catalog has it, cancellation waits for the rest."""
        session.open_transaction().refuse_block(statement.sql.split()[0].upper() + " of objects")
        if session.open_transaction().read_only:
            raise SqlError("cannot execute DDL in a read-only transaction", sqlstate="25006")
        await session.flush_implicit()
        rule = _RULES[type(statement)]
        async with self._one_at_a_time:
            work = asyncio.ensure_future(rule(self, session, statement))
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.wait([work])
                raise

    async def _alter_system(self, session: Session, statement: ast.SetVariable | ast.ResetVariable) -> Outcome:
        return await self._c.system_variables.alter(statement)

    # -- creating ------------------------------------------------------------------------------------------------

    async def _create_table(self, session: Session, statement: ast.CreateTable) -> Outcome:
        tag = Completed("CREATE TABLE")
        if self._exists(session, statement.name, if_not_exists=statement.if_not_exists):
            return tag
        view = self._c.view(session)
        full = view.full_name(statement.name.parts)
        seen: set[str] = set()
        for column in statement.columns:
            if column.name.last in seen:
                raise SqlError(
                    f'column "{column.name.last}" specified more than once',
                    sqlstate="42701",
                    position=column.name.position,
                )
            seen.add(column.name.last)
        desc = RelationDesc(tuple(Column(c.name.last, c.type, c.nullable) for c in statement.columns))
        defaults = tuple(c.default_sql for c in statement.columns)
        self._c.writes.check_defaults(session, statement, desc)
        transaction = self._c.catalog.begin()
        shard = new_shard_id()
        id_ = transaction.create_item(
            ItemKind.TABLE,
            full,
            table_sql(full, desc, defaults),
            desc=desc,
            defaults=defaults if any(defaults) else (),
            shard_id=shard,
        )
        item = await self._commit_item(transaction, id_)
        assert item.desc is not None
        await self._c.storage.create_collections([collection_spec(item)])
        await self._c.committer.register({ShardId(shard): item.desc.arrow})
        return tag

    async def _create_view(self, session: Session, statement: ast.CreateView) -> Outcome:
        tag = Completed("CREATE VIEW")
        if self._exists(session, statement.name, if_not_exists=statement.if_not_exists, replace=statement.or_replace):
            return tag
        full = self._c.view(session).full_name(statement.name.parts)
        plan = self._c.planner.view_query(self._c.plain_view(session), statement.query.tree)
        self._c.planner.rel(self._c.catalog.state, plan)  # refuses what cannot be maintained
        desc = self._named(plan.desc, statement.columns)
        transaction = self._c.catalog.begin()
        dropped = self._replace(session, transaction, statement, full, ItemKind.VIEW)
        transaction.create_item(
            ItemKind.VIEW,
            full,
            view_sql(statement, full, self._c.plain_view(session)),
            desc=desc,
            uses=plan.uses,
        )
        await self._commit_with_drops(transaction, dropped)
        return tag

    async def _create_materialized_view(self, session: Session, statement: ast.CreateMaterializedView) -> Outcome:
        tag = Completed("CREATE MATERIALIZED VIEW")
        if self._exists(session, statement.name, if_not_exists=statement.if_not_exists, replace=statement.or_replace):
            return tag
        full = self._c.view(session).full_name(statement.name.parts)
        cluster = self._cluster(session, statement.cluster)
        plan = self._c.planner.view_query(self._c.plain_view(session), statement.query.tree)
        self._c.planner.rel(self._c.catalog.state, plan)  # refuses what cannot be maintained
        transaction = self._c.catalog.begin()
        dropped = self._replace(session, transaction, statement, full, ItemKind.MATERIALIZED_VIEW)
        id_ = transaction.create_item(
            ItemKind.MATERIALIZED_VIEW,
            full,
            view_sql(statement, full, self._c.plain_view(session), self._c.catalog.state.clusters[cluster].name),
            desc=self._named(plan.desc, statement.columns),
            shard_id=new_shard_id(),
            cluster_id=cluster,
            uses=plan.uses,
        )
        await self._commit_with_drops(transaction, dropped)
        item = self._c.catalog.state.items[id_]
        await self._c.storage.create_collections([collection_spec(item)])
        await self._start(item, self._builder().materialized_view)
        return tag

    async def _create_index(self, session: Session, statement: ast.CreateIndex) -> Outcome:
        tag = Completed("CREATE INDEX")
        view = self._c.view(session)
        on = view.resolve(statement.on.parts)
        if on.desc is None or on.kind is ItemKind.SYSTEM:
            raise SqlError(f'"{on.name[2]}" cannot be indexed', sqlstate="42809", position=statement.on.position)
        key = self._key(on, statement)
        name = statement.name.last if statement.name is not None else self._free_index_name(on)
        if statement.name is not None and self._exists(
            session, ast.Name((*on.name[:2], name)), if_not_exists=statement.if_not_exists
        ):
            return tag
        cluster = self._cluster(session, statement.cluster)
        columns = ", ".join(quote_ident(on.desc.columns[i].name) for i in key)
        in_cluster = quote_ident(self._c.catalog.state.clusters[cluster].name)
        relation = ".".join(map(quote_ident, on.name))
        sql = f"CREATE INDEX {quote_ident(name)} IN CLUSTER {in_cluster} ON {relation} ({columns})"
        transaction = self._c.catalog.begin()
        id_ = transaction.create_item(
            ItemKind.INDEX,
            (on.name[0], on.name[1], name),
            sql,
            cluster_id=cluster,
            uses=[on.id],
            on_id=on.id,
            index_key=key,
        )
        item = await self._commit_item(transaction, id_)
        await self._start(item, self._builder().index)
        return tag

    def _key(self, on: CatalogItem, statement: ast.CreateIndex) -> tuple[int, ...]:
        assert on.desc is not None
        if statement.key is None:
            return tuple(range(len(on.desc.columns)))
        positions = []
        for part in statement.key:
            if not isinstance(part, exp.Column):
                raise SqlError(
                    "indexes on expressions are not supported",
                    sqlstate="0A000",
                    hint="Create a view that has the expression as a column, and index that column.",
                )
            wanted = part.name if part.this.args.get("quoted") else part.name.lower()
            position = on.desc.index_of(wanted)
            if position is None:
                raise SqlError(f'column "{wanted}" does not exist', sqlstate="42703")
            if position not in positions:
                positions.append(position)
        return tuple(positions)

    def _free_index_name(self, on: CatalogItem) -> str:
        base = f"{on.name[2]}_primary_idx"
        taken = self._c.catalog.state.items_by_name
        names = [base, *(f"{base}{number}" for number in range(1, len(taken) + 2))]
        return next(name for name in names if (*on.name[:2], name) not in taken)

    async def _start(self, item: CatalogItem, describe: Callable[..., DataflowDescription]) -> None:
        """Run the dataflow of a new item from the oldest time that strict reads may still ask for."""
        try:
            holds = acquire_inputs(describe(item), self._c.storage, self._c.compute)
            as_of = max([self._c.oracle.read_ts(), *(Timestamp(hold.since) for hold in holds.values())])
            for hold in holds.values():
                hold.downgrade(Frontier(as_of))
            await self._c.compute.create_dataflow(ClusterId(item.cluster_id or ""), describe(item, as_of), holds)
        except PenstockError as error:
            self._c.broken[item.id] = error.message  # it exists, and is tried again at the next start
            raise
        self._c.started(item.id)

    # -- the rest of the catalog ---------------------------------------------------------------------------------

    async def _create_cluster(self, session: Session, statement: ast.CreateCluster) -> Outcome:
        transaction = self._c.catalog.begin()
        factor = statement.replication_factor
        id_ = transaction.create_cluster(statement.name.last, statement.size or "100cc", factor)
        await self._commit(transaction)
        state = self._c.catalog.state
        specs = tuple(ReplicaSpec(ReplicaId(r), replica.name) for r, replica in state.replicas_of(id_).items())
        await self._c.compute.create_cluster(ClusterSpec(ClusterId(id_), statement.name.last, specs))
        return Completed("CREATE CLUSTER")

    async def _alter_cluster(self, session: Session, statement: ast.AlterCluster) -> Outcome:
        transaction = self._c.catalog.begin()
        name = statement.name.last
        transaction.alter_cluster(name, size=statement.size, replication_factor=statement.replication_factor)
        cluster = self._cluster(session, statement.name)
        before = self._c.catalog.state.replicas_of(cluster)
        await self._commit(transaction)
        after = self._c.catalog.state.replicas_of(cluster)
        for id_ in after.keys() - before.keys():
            await self._c.compute.create_replica(ClusterId(cluster), ReplicaSpec(ReplicaId(id_), after[id_].name))
        for id_ in before.keys() - after.keys():
            await self._c.compute.drop_replica(ClusterId(cluster), ReplicaId(id_))
        return Completed("ALTER CLUSTER")

    async def _create_schema(self, session: Session, statement: ast.CreateSchema) -> Outcome:
        parts = statement.name.parts
        database = parts[0] if len(parts) == 2 else session.variables["database"]
        if self._c.catalog.state.schema_id(database, parts[-1]) is not None and statement.if_not_exists:
            session.notice(f'schema "{parts[-1]}" already exists, skipping', sqlstate="42P06")
            return Completed("CREATE SCHEMA")
        transaction = self._c.catalog.begin()
        transaction.create_schema(database, parts[-1])
        await self._commit(transaction)
        return Completed("CREATE SCHEMA")

    async def _create_database(self, session: Session, statement: ast.CreateDatabase) -> Outcome:
        name = statement.name.last
        if self._c.catalog.state.database_id(name) is not None and statement.if_not_exists:
            session.notice(f'database "{name}" already exists, skipping', sqlstate="42P04")
            return Completed("CREATE DATABASE")
        transaction = self._c.catalog.begin()
        transaction.create_database(name)
        await self._commit(transaction)
        return Completed("CREATE DATABASE")

    async def _create_role(self, session: Session, statement: ast.CreateRole) -> Outcome:
        name = statement.name.last
        if self._c.catalog.state.role_id(name) is not None and statement.if_not_exists:
            session.notice(f'role "{name}" already exists, skipping', sqlstate="42710")
            return Completed("CREATE ROLE")
        transaction = self._c.catalog.begin()
        transaction.create_role(name)
        await self._commit(transaction)
        return Completed("CREATE ROLE")

    async def _rename(self, session: Session, statement: ast.Rename) -> Outcome:
        tag = Completed(f"ALTER {statement.object_type.value.upper()}")
        if statement.object_type not in _KINDS.values():
            raise SqlError(f"renaming a {statement.object_type.value} is not supported", sqlstate="0A000")
        item = self._find(session, statement.object_type, statement.name, if_exists=statement.if_exists)
        if item is None:
            return tag
        transaction = self._c.catalog.begin()
        transaction.rename_item(item.id, statement.new_name)
        await self._commit(transaction)
        return tag

    async def _comment(self, session: Session, statement: ast.Comment) -> Outcome:
        column: int | None = None
        name, object_type = statement.name, statement.object_type
        if object_type is ObjectType.COLUMN:
            item = self._c.view(session).resolve(name.parts[:-1])
            position = item.desc.index_of(name.last) if item.desc is not None else None
            if position is None:
                raise SqlError(f'column "{name.last}" does not exist', sqlstate="42703", position=name.position)
            column = position + 1
        elif object_type in _KINDS.values():
            found = self._find(session, object_type, name, if_exists=False)
            assert found is not None
            item = found
        else:
            raise SqlError(f"COMMENT ON {object_type.value.upper()} is not supported", sqlstate="0A000")
        transaction = self._c.catalog.begin()
        transaction.set_comment(item.id, column, statement.text)
        await self._commit(transaction)
        return Completed("COMMENT")

    # -- dropping ------------------------------------------------------------------------------------------------

    async def _drop(self, session: Session, statement: ast.Drop) -> Outcome:
        transaction = self._c.catalog.begin()
        dropped: list[GlobalId] = []
        clusters: list[str] = []
        for name in statement.names:
            kind = statement.object_type
            if kind is ObjectType.CLUSTER:
                cluster = self._c.catalog.state.cluster_id(name.last)
                if cluster is None and statement.if_exists:
                    session.notice(f'cluster "{name.last}" does not exist, skipping', sqlstate="42704")
                    continue
                dropped += transaction.drop_cluster(name.last, cascade=statement.cascade)
                clusters.append(cluster or "")
            elif kind is ObjectType.SCHEMA:
                dropped += self._drop_schema(session, transaction, name, statement)
            elif kind is ObjectType.DATABASE:
                if self._c.catalog.state.database_id(name.last) is None and statement.if_exists:
                    session.notice(f'database "{name.last}" does not exist, skipping', sqlstate="3D000")
                    continue
                dropped += transaction.drop_database(name.last, cascade=statement.cascade)
            elif kind is ObjectType.ROLE:
                if self._c.catalog.state.role_id(name.last) is None and statement.if_exists:
                    session.notice(f'role "{name.last}" does not exist, skipping', sqlstate="42704")
                    continue
                transaction.drop_role(name.last)
            else:
                item = self._find(session, kind, name, if_exists=statement.if_exists)
                if item is not None and item.id not in dropped:
                    dropped += transaction.drop_item(item.id, cascade=statement.cascade)
        await self._commit_with_drops(transaction, dropped)
        for cluster_id in clusters:
            await self._c.compute.drop_cluster(ClusterId(cluster_id))
        return Completed(f"DROP {statement.object_type.value.upper()}")

    def _drop_schema(
        self, session: Session, transaction: CatalogTransaction, name: ast.Name, statement: ast.Drop
    ) -> list[GlobalId]:
        database = name.parts[0] if len(name.parts) == 2 else session.variables["database"]
        if self._c.catalog.state.schema_id(database, name.last) is None and statement.if_exists:
            session.notice(f'schema "{name.last}" does not exist, skipping', sqlstate="3F000")
            return []
        return transaction.drop_schema(database, name.last, cascade=statement.cascade)

    def _replace(
        self,
        session: Session,
        transaction: CatalogTransaction,
        statement: ast.CreateView | ast.CreateMaterializedView,
        full: tuple[str, str, str],
        kind: ItemKind,
    ) -> list[GlobalId]:
        """OR REPLACE: drop what has the name, which nothing may depend on."""
        old = self._c.catalog.state.items_by_name.get(full)
        if old is None or not statement.or_replace:
            return []
        if old.kind is not kind:
            raise SqlError(f'"{full[2]}" is not a {kind.value.replace("-", " ")}', sqlstate="42809")
        return transaction.drop_item(old.id, cascade=False)

    async def _commit_with_drops(self, transaction: CatalogTransaction, dropped: Iterable[GlobalId]) -> None:
        """Make the transaction durable, then end what it dropped: subscriptions, dataflows, tables, collections."""
        gone = [self._c.catalog.state.items[id_] for id_ in dropped]
        await self._commit(transaction)
        if not gone:
            return
        self._c.subscriptions.drop_dependents([i.id for i in gone], {item.id: item.name[2] for item in gone})
        for item in gone:
            if item.kind in (ItemKind.INDEX, ItemKind.MATERIALIZED_VIEW) and self._c.is_running(item.id):
                await self._c.compute.drop_collections([item.id])
        tables = [ShardId(item.shard_id) for item in gone if item.kind is ItemKind.TABLE and item.shard_id]
        if tables:
            await self._c.committer.forget(tables)
        await self._c.storage.drop_collections([item.id for item in gone if item.shard_id is not None])

    # -- parts ---------------------------------------------------------------------------------------------------

    def _builder(self) -> DataflowBuilder:
        return DataflowBuilder(self._c.catalog.state, self._c.planner)

    async def _commit(self, transaction: CatalogTransaction) -> None:
        await self._c.commit_catalog(transaction)

    async def _commit_item(self, transaction: CatalogTransaction, id_: GlobalId) -> CatalogItem:
        await self._commit(transaction)
        return self._c.catalog.state.items[id_]

    def _exists(self, session: Session, name: ast.Name, *, if_not_exists: bool, replace: bool = False) -> bool:
        """Whether the name is taken and that is fine. A name that is taken otherwise fails when it is created."""
        full = self._c.view(session).full_name(name.parts)
        if not if_not_exists or replace or full not in self._c.catalog.state.items_by_name:
            return False
        session.notice(f'relation "{full[2]}" already exists, skipping', sqlstate="42P07")
        return True

    def _find(self, session: Session, kind: ObjectType, name: ast.Name, *, if_exists: bool) -> CatalogItem | None:
        try:
            item = self._c.plain_view(session).resolve(name.parts)
        except SqlError as error:
            if if_exists and error.sqlstate in ("42P01", "3F000", "3D000"):
                session.notice(f'{kind.value} "{name.last}" does not exist, skipping', sqlstate="00000")
                return None
            error.position = error.position or name.position
            raise
        actual = _KINDS.get(item.kind)
        if actual is not kind:
            what = actual.value if actual is not None else "system relation"
            article = "an" if what[0] in "aeiou" else "a"
            raise SqlError(
                f'"{name.last}" is {article} {what}, not a {kind.value}',
                sqlstate="42809",
                hint=f"Use DROP {what.upper()}." if actual is not None else None,
                position=name.position,
            )
        return item

    def _cluster(self, session: Session, name: ast.Name | None) -> str:
        wanted = name.last if name is not None else session.variables["cluster"]
        return self._c.cluster_named(wanted)

    @staticmethod
    def _named(desc: RelationDesc, columns: tuple[ast.Name, ...] | None) -> RelationDesc:
        """`desc` under the names of a column list. Raises `SqlError` when they do not fit, or are not distinct."""
        names = [column.name for column in desc.columns]
        if columns is not None:
            if len(columns) > len(names):
                raise SqlError(
                    f"the view has {len(names)} columns but {len(columns)} names are given",
                    sqlstate="42601",
                    position=columns[len(names)].position,
                )
            names[: len(columns)] = [column.last for column in columns]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise SqlError(
                f'column "{min(twice)}" specified more than once',
                sqlstate="42701",
                hint="Give the columns of the view distinct names with AS.",
            )
        return RelationDesc(
            tuple(Column(name, c.type, c.nullable) for name, c in zip(names, desc.columns, strict=True))
        )


_RULES: dict[type, Callable[[Objects, Session, Any], Awaitable[Outcome]]] = {
    ast.CreateTable: Objects._create_table,
    ast.CreateView: Objects._create_view,
    ast.CreateMaterializedView: Objects._create_materialized_view,
    ast.CreateIndex: Objects._create_index,
    ast.CreateCluster: Objects._create_cluster,
    ast.AlterCluster: Objects._alter_cluster,
    ast.CreateSchema: Objects._create_schema,
    ast.CreateDatabase: Objects._create_database,
    ast.CreateRole: Objects._create_role,
    ast.Rename: Objects._rename,
    ast.Comment: Objects._comment,
    ast.Drop: Objects._drop,
    ast.SetVariable: Objects._alter_system,
    ast.ResetVariable: Objects._alter_system,
}
DDL = tuple(_RULES)
"""The statement kinds carried out here."""
