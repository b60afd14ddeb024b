"""The coordinator: what all sessions share, where they come from, and who carries out each kind of statement."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pyarrow as pa
from sqlglot import exp

import penstock
from penstock.adapter import pg_catalog
from penstock.adapter.dml_plans import cast
from penstock.adapter.explanations import Explanations
from penstock.adapter.group_commit import GroupCommitter
from penstock.adapter.listings import Listings
from penstock.adapter.locks import TableLocks
from penstock.adapter.objects import DDL, Objects
from penstock.adapter.oracle import TimestampOracle
from penstock.adapter.planning import IndexedCatalog, Planner
from penstock.adapter.reads import Reads
from penstock.adapter.session import Session
from penstock.adapter.session_api import CopyFormat, CopyOut, Outcome, Parameters, Rows, StatementDescription
from penstock.adapter.subscribe import subscribe_desc
from penstock.adapter.subscriptions import Subscriptions
from penstock.adapter.system_relations import system_relations
from penstock.adapter.system_rows import SystemRows, system_items
from penstock.adapter.system_variables import SystemVariables
from penstock.adapter.value_rows import bound, declared_types
from penstock.adapter.variables import SessionVariables, lookup
from penstock.adapter.writes import Writes, copy_options
from penstock.catalog import Catalog, CatalogFenced, CatalogTransaction, SessionCatalog
from penstock.committer import RoutedConsensus
from penstock.compute.query import execute
from penstock.control import ComputeController, StorageController
from penstock.runtime import Clock, GlobalId, SqlError, TaskOwner, Timestamp
from penstock.sql import QueryPlan, SqlType
from penstock.sql import Session as PlanSession
from penstock.sql import statements as ast
from penstock.sql.items import CatalogItem, ItemKind

SESSIONS_MAX = 5_000
MZ_VERSION = f"v{penstock.__version__} (Penstock)"
VERSION = f"PostgreSQL 16.3 (Penstock {penstock.__version__})"


class Coordinator:
    """See `session_api.Coordinator` for what the server asks of it."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        planner: Planner,
        oracle: TimestampOracle,
        committer: GroupCommitter,
        storage: StorageController,
        compute: ComputeController,
        clock: Clock,
        tasks: TaskOwner,
        broken: dict[GlobalId, str],
        consensus: RoutedConsensus,
        on_fatal: Callable[[str], None],
    ) -> None:
        self.catalog = catalog
        self.planner = planner
        self.oracle = oracle
        self.committer = committer
        self.storage = storage
        self.compute = compute
        self.clock = clock
        self.tasks = tasks
        self.broken = broken
        """Objects whose dataflow could not be started, with the reason."""
        self.locks = TableLocks()
        self.reads = Reads(self)
        self.writes = Writes(self)
        self.objects = Objects(self)
        self.subscriptions = Subscriptions(self)
        self.listings = Listings(self)
        self.explanations = Explanations(self)
        self.system = SystemRows(self)
        self.system_variables = SystemVariables(self, consensus)
        self.sessions: dict[int, Session] = {}
        self._process_ids = itertools.count(1)
        self._on_fatal = on_fatal
        self._views: dict[tuple[object, ...], IndexedCatalog] = {}

    # -- sessions ------------------------------------------------------------------------------------------------

    async def connect(self, user: str, database: str, options: dict[str, str], client_address: str) -> Session:
        """Open a session. SqlError 3D000 for an unknown database, 22023 or 42704 for impossible settings."""
        if len(self.sessions) >= SESSIONS_MAX:
            raise SqlError("sorry, too many clients already", sqlstate="53300")
        if self.catalog.state.database_id(database) is None:
            known = ", ".join(d.name for d in self.catalog.state.databases.values())
            raise SqlError(f'database "{database}" does not exist', sqlstate="3D000", hint=f"There is: {known}.")
        variables = SessionVariables({"database": database, "mz_version": MZ_VERSION})
        refused = []
        for name, value in _settings(options):
            try:
                variables.set_default(name, value)
            except SqlError as error:
                if error.sqlstate != "22023":
                    raise
                refused.append(error.message)
        session = Session(self, next(self._process_ids), user, variables, client_address)
        for message in refused:
            session.notice(message, severity="WARNING", sqlstate="22023", hint="The default is used instead.")
        self.sessions[session.process_id] = session
        return session

    def cancel(self, process_id: int, secret: int) -> bool:
        """Interrupt what a session runs."""
        session = self.sessions.get(process_id)
        if session is None or session.secret != secret:
            return False
        session.interrupts.interrupt(SqlError("canceling statement due to user request", sqlstate="57014"))
        return True

    def disconnected(self, session: Session) -> None:
        """The session is closed."""
        self.sessions.pop(session.process_id, None)

    async def close(self) -> None:
        """Interrupt everything that runs; the server closes the sessions."""
        for session in self.sessions.values():
            session.interrupts.interrupt(SqlError("the server is shutting down", sqlstate="57P01"))

    # -- names and plans -----------------------------------------------------------------------------------------

    def view(self, session: Session) -> IndexedCatalog:
        """The catalog as the session plans queries with it: indexed views are collections."""
        variables = session.variables
        cluster = self.catalog.state.cluster_id(variables["cluster"])
        key = (self.catalog.state.version, variables["database"], tuple(variables.search_path), cluster)
        found = self._views.get(key)
        if found is None:
            if len(self._views) > 100:
                self._views.clear()
            found = self._views[key] = IndexedCatalog(self.plain_view(session), cluster, system_items())
        return found

    def plain_view(self, session: Session) -> SessionCatalog:
        """The catalog as the session names things in it."""
        return SessionCatalog(
            self.catalog.state,
            database=session.variables["database"],
            search_path=session.variables.search_path,
            system=system_items(),
        )

    def plan_session(self, session: Session) -> PlanSession:
        """What a query's meaning depends on besides the catalog."""
        path = [s for s in session.variables.search_path if self._schema_exists(session, s)]
        return PlanSession(
            now_us=self.clock.now_ms() * 1000,
            user=session.user,
            session_user=session.user,
            database=session.variables["database"],
            schema=path[0] if path else None,
            version=VERSION,
            mz_version=MZ_VERSION,
            process_id=session.process_id,
            settings={name: value for name, value, _ in self.all_variables(session)},
        )

    def _schema_exists(self, session: Session, schema: str) -> bool:
        return self.catalog.state.schema_id(session.variables["database"], schema) is not None

    def plan(self, session: Session, tree: exp.Expression, types: Sequence[SqlType | None] = ()) -> QueryPlan:
        """The plan of a query."""
        return self.planner.query(tree, self.view(session), types, self.plan_session(session))

    def cluster_of(self, session: Session) -> str:
        """The id of the session's cluster, which must have a replica. SqlError 42704, 55000."""
        name = session.variables["cluster"]
        cluster = self.cluster_named(name)
        if not self.catalog.state.replicas_of(cluster):
            raise SqlError(
                f'cluster "{name}" has no replicas to answer queries',
                sqlstate="55000",
                hint=f"ALTER CLUSTER {name} SET (REPLICATION FACTOR = 1), or SET cluster to another.",
            )
        return cluster

    def cluster_named(self, name: str) -> str:
        """The id of a cluster. SqlError 42704 when there is none of that name."""
        found = self.catalog.state.cluster_id(name)
        if found is None:
            raise SqlError(f'unknown cluster "{name}"', sqlstate="42704", hint="SHOW CLUSTERS lists the clusters.")
        return found

    def is_running(self, id_: GlobalId) -> bool:
        """Whether the dataflow of an index or materialized view was started."""
        try:
            self.compute.frontiers(id_)
        except KeyError:
            return False
        return True

    def started(self, id_: GlobalId) -> None:
        """The dataflow of `id_` runs."""
        self.broken.pop(id_, None)

    async def commit_catalog(self, transaction: CatalogTransaction) -> None:
        """Make a change of the catalog durable. When this coordinator was fenced, it stops."""
        try:
            await self.catalog.commit(transaction)
        except CatalogFenced as error:
            self._on_fatal(error.message)
            raise

    async def timestamp_of(self, session: Session, expression: exp.Expression) -> Timestamp:
        """The time that the expression of AS OF or UP TO means: a constant, in milliseconds or as a timestamp."""
        plan = self.plan(session, exp.select(expression.copy()))
        if plan.inputs:
            raise SqlError("AS OF takes a constant", sqlstate="0A000")
        now = self.oracle.read_ts()
        (batch,) = list(execute(plan.datafusion_sql, {}, now, schema=plan.desc.arrow, partitions=1))
        value = batch.column(0)[0]
        if pa.types.is_timestamp(value.type):
            value = value.cast(pa.timestamp("ms", value.type.tz)).cast(pa.int64())
        try:
            number = int(value.as_py())
        except (TypeError, ValueError):
            raise SqlError("AS OF takes a number of milliseconds or a timestamp", sqlstate="42804") from None
        if not 0 <= number < 2**63 - 1:
            raise SqlError(f"timestamp {number} is out of range", sqlstate="22003")
        return Timestamp(number)

    async def evaluate_arguments(
        self, session: Session, statement: ast.Execute, types: Sequence[SqlType]
    ) -> list[object | None]:
        """The values of EXECUTE's arguments as text."""
        values: list[object | None] = []
        for argument, kind in zip(statement.arguments, types, strict=True):
            tree = exp.select(exp.Cast(this=cast(argument, kind), to=exp.DataType.build("text")))
            plan = self.plan(session, tree)
            if plan.inputs:
                raise SqlError("cannot use subquery in EXECUTE parameter", sqlstate="0A000")
            (batch,) = list(execute(plan.datafusion_sql, {}, Timestamp(0), schema=plan.desc.arrow, partitions=1))
            values.append(batch.column(0)[0].as_py())
        return values

    def subscribe_plan(self, session: Session, statement: ast.Subscribe, parameters: Parameters) -> QueryPlan:
        """The plan of what a SUBSCRIBE follows."""
        if statement.query is not None:
            plan = self.plan(session, statement.query.tree, declared_types(parameters.types))
            return bound(plan, parameters)
        assert statement.name is not None
        return self.plan(session, self.table_tree(session, statement.name))

    def table_tree(self, session: Session, name: ast.Name) -> exp.Expression:
        """``SELECT * FROM name``."""
        try:
            item = self.view(session).resolve(name.parts)
        except SqlError as error:
            error.position = error.position or name.position
            raise
        parts = [exp.to_identifier(part, quoted=True) for part in item.name if part]
        table = exp.Table(
            this=parts[-1], db=parts[-2] if len(parts) > 1 else None, catalog=parts[-3] if len(parts) > 2 else None
        )
        return exp.select("*").from_(table)

    def direct_collection(self, session: Session, statement: ast.Subscribe) -> CatalogItem | None:
        """The collection that SUBSCRIBE names, where its rows need no computing."""
        if statement.name is None:
            return None
        item = self.view(session).resolve(statement.name.parts)
        return None if item.kind is ItemKind.VIEW else item

    # -- statements ----------------------------------------------------------------------------------------------

    async def describe(
        self, session: Session, statement: ast.Statement, parameter_types: Sequence[int]
    ) -> StatementDescription:
        """Parameters and columns of a statement, without running it."""
        given = declared_types(parameter_types)
        if isinstance(statement, ast.CopyTo | ast.Declare | ast.Prepare):
            inner = statement.source if isinstance(statement, ast.CopyTo) else statement.statement
            return StatementDescription((await self.describe(session, inner, parameter_types)).parameters, None)
        if isinstance(statement, ast.Query):
            if pg_catalog.is_catalog_query(statement.tree):
                kinds, desc = pg_catalog.describe(statement.tree, self._snapshot(session), parameter_types)
                return StatementDescription(kinds, desc)
            plan = self.plan(session, statement.tree, given)
            return StatementDescription(plan.parameters, plan.desc)
        if isinstance(statement, ast.Subscribe):
            tree = statement.query.tree if statement.query is not None else None
            if tree is None:
                assert statement.name is not None
                tree = self.table_tree(session, statement.name)
            plan = self.plan(session, tree, given)
            return StatementDescription(plan.parameters, subscribe_desc(plan.desc, progress=statement.progress))
        if isinstance(statement, ast.Insert | ast.Update | ast.Delete):
            return StatementDescription(*self.writes.describe(session, statement, given))
        if isinstance(statement, ast.Explain):
            return StatementDescription([], self.explanations.describe(statement))
        if isinstance(statement, ast.ShowObjects | ast.ShowCreate | ast.ShowVariable):
            return StatementDescription([], self.listings.describe(session, statement))
        return StatementDescription([], None)

    async def execute(self, session: Session, statement: Any, parameters: Parameters) -> Outcome:
        """Carry out a statement that is not the session's own business."""
        match statement:
            case ast.Query():
                return await self._query(session, statement, parameters)
            case ast.Insert():
                return await self.writes.insert(session, statement, parameters)
            case ast.Update():
                return await self.writes.update(session, statement, parameters)
            case ast.Delete():
                return await self.writes.delete(session, statement, parameters)
            case ast.Subscribe():
                return await self.subscriptions.subscribe(session, statement, parameters)
            case ast.CopyFrom():
                return self.writes.copy_from(session, statement)
            case ast.CopyTo():
                rows = await self.execute(session, statement.source, parameters)
                assert isinstance(rows, Rows), rows
                format_ = CopyFormat(statement.options.format.value)
                return CopyOut(rows.desc, format_, copy_options(statement.options), rows.batches)
            case ast.Explain():
                return await self.explanations.explain(session, statement)
            case ast.ShowObjects() | ast.ShowCreate() | ast.ShowVariable():
                return self.listings.show(session, statement)
        if isinstance(statement, DDL):
            return await self.objects.execute(session, statement)
        raise SqlError(f"{statement.sql.split()[0].upper()} is not supported here", sqlstate="0A000")

    async def _query(self, session: Session, statement: ast.Query, parameters: Parameters) -> Rows:
        if not pg_catalog.is_catalog_query(statement.tree):
            return await self.reads.query(session, statement, parameters)
        tables = {name: self.system.named(name) for name in self.system.names_in(statement.tree)}
        desc, table = pg_catalog.answer(statement.tree, self._snapshot(session), parameters, tables=tables)

        async def batches() -> AsyncGenerator[pa.RecordBatch, None]:
            for batch in table.to_batches():
                yield batch

        return Rows(desc, batches())

    def _snapshot(self, session: Session) -> pg_catalog.Snapshot:
        variables = session.variables
        info = pg_catalog.SessionInfo(
            database=variables["database"],
            user=session.user,
            search_path=variables.search_path,
            process_id=session.process_id,
            version=VERSION,
            settings={name: value for name, value, _ in self.all_variables(session)},
        )
        return pg_catalog.Snapshot(self.catalog.state, info, system_relations())

    def all_variables(self, session: Session) -> list[tuple[str, str, str]]:
        """Name, value and description of the session's variables and the system's, by name."""
        return sorted([*session.variables.all(), *self.system_variables.all()], key=lambda row: row[0].lower())

    def check_variable(self, session: Session, name: str, value: str) -> None:
        """Refuse values that name nothing there is; say so where PostgreSQL would accept it silently."""
        variable = lookup(name)
        if variable.name == "cluster" and self.catalog.state.cluster_id(value) is None:
            session.notice(f'cluster "{value}" does not exist', sqlstate="42704")
        if variable.name == "database" and self.catalog.state.database_id(value) is None:
            session.notice(f'database "{value}" does not exist', sqlstate="3D000")


def _settings(options: dict[str, str]) -> list[tuple[str, str]]:
    """The session variables of a startup packet; ``options`` holds ``-c name=value`` and ``--name=value``."""
    found: list[tuple[str, str]] = []
    for name, value in options.items():
        if name != "options":
            found.append((name, value))
            continue
        words = iter(value.replace("\\ ", "\0").split())
        for word in words:
            setting = next(words, "") if word == "-c" else word.removeprefix("-c").removeprefix("--")
            key, equals, content = setting.replace("\0", " ").partition("=")
            if not equals:
                raise SqlError(f"invalid startup option: {word}", sqlstate="22023")
            found.append((key.replace("-", "_"), content))
    return found
