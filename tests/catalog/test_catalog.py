"""The catalog survives its process, fences stale writers and keeps its rules."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from penstock.catalog import Catalog, CatalogFenced, CatalogTransaction, SessionCatalog
from penstock.catalog.references import rename_references
from penstock.persist import MemBlob, MemConsensus, PersistClient, UnreliableBlob, UnreliableConsensus
from penstock.runtime import GlobalId, SqlError
from penstock.sql.items import ItemKind
from penstock.sql.types import INT4, TEXT, Column, RelationDesc, numeric

DESC = RelationDesc((Column("a", INT4, False), Column("b", TEXT, True), Column("c", numeric(12, 2), True)))
PUBLIC = ("materialize", "public")


def run(body: Callable[[PersistClient], Awaitable[None]]) -> None:
    async def main() -> None:
        client = PersistClient(MemBlob(), MemConsensus())
        try:
            await body(client)
        finally:
            await client.close()

    asyncio.run(main())


def table(transaction: CatalogTransaction, name: str, shard: str = "s1") -> GlobalId:
    return transaction.create_item(
        ItemKind.TABLE, (*PUBLIC, name), f"CREATE TABLE materialize.public.{name} (a int)", desc=DESC, shard_id=shard
    )


def view(transaction: CatalogTransaction, name: str, on: str, uses: GlobalId) -> GlobalId:
    sql = f"CREATE VIEW materialize.public.{name} AS SELECT {on}.a FROM materialize.public.{on} AS {on}"
    return transaction.create_item(ItemKind.VIEW, (*PUBLIC, name), sql, desc=DESC, uses=[uses])


def test_a_new_environment_has_what_the_manual_says() -> None:
    async def body(client: PersistClient) -> None:
        state = (await Catalog.open(client)).state
        assert [database.name for database in state.databases.values()] == ["materialize"]
        assert [schema.name for schema in state.schemas.values()] == ["public"]
        assert [cluster.name for cluster in state.clusters.values()] == ["quickstart"]
        assert [replica.name for replica in state.replicas.values()] == ["r1"]
        assert state.epoch == 1

    run(body)


def test_what_was_committed_is_there_after_reopening() -> None:
    async def body(client: PersistClient) -> None:
        catalog = await Catalog.open(client)
        transaction = catalog.begin()
        t = table(transaction, "t")
        v = view(transaction, "v", "t", t)
        transaction.set_comment(t, None, "a table")
        await catalog.commit(transaction)
        again = await Catalog.open(client)
        assert again.epoch == 2
        assert again.state.items[t].desc == DESC
        assert again.state.items[v].uses == (t,)
        assert again.state.comments == {t: "a table"}
        more = again.begin()
        assert table(more, "u") == "u3", "an id was used again"

    run(body)


def test_a_stale_writer_fails_before_it_writes() -> None:
    async def body(client: PersistClient) -> None:
        stale = await Catalog.open(client)
        fresh = await Catalog.open(client)
        transaction = stale.begin()
        table(transaction, "t")
        with pytest.raises(CatalogFenced, match="taken over"):
            await stale.commit(transaction)
        with pytest.raises(CatalogFenced):
            await stale.check_leader()
        await fresh.check_leader()
        assert (await Catalog.open(client)).state.items == {}

    run(body)


def test_committing_and_opening_through_stores_that_fail() -> None:
    async def main() -> None:
        consensus, blob = MemConsensus(), MemBlob()
        client = PersistClient(UnreliableBlob(blob, seed=3), UnreliableConsensus(consensus, seed=4))
        catalog = await Catalog.open(client)
        for number in range(30):
            transaction = catalog.begin()
            table(transaction, f"t{number}")
            await catalog.commit(transaction)
        await client.close()
        calm = PersistClient(blob, consensus)
        assert len((await Catalog.open(calm)).state.items) == 30
        await calm.close()

    asyncio.run(main())


def test_names_are_unique_and_schemas_must_exist() -> None:
    async def body(client: PersistClient) -> None:
        transaction = (await Catalog.open(client)).begin()
        table(transaction, "t")
        for attempt, sqlstate in (
            (lambda: table(transaction, "t"), "42P07"),
            (lambda: transaction.create_schema("materialize", "public"), "42P06"),
            (lambda: transaction.create_schema("materialize", "pg_x"), "42939"),
            (lambda: transaction.create_schema("nowhere", "x"), "3D000"),
            (lambda: transaction.create_database("materialize"), "42P04"),
            (lambda: transaction.create_cluster("quickstart", "100cc", 1), "42710"),
            (lambda: transaction.create_role("materialize"), "42710"),
            (lambda: transaction.create_item(ItemKind.VIEW, ("materialize", "no", "v"), ""), "3F000"),
        ):
            with pytest.raises(SqlError) as caught:
                attempt()
            assert caught.value.sqlstate == sqlstate

    run(body)


def test_dropping_what_others_use() -> None:
    async def body(client: PersistClient) -> None:
        catalog = await Catalog.open(client)
        transaction = catalog.begin()
        t = table(transaction, "t", shard="s7")
        v = view(transaction, "v", "t", t)
        w = view(transaction, "w", "v", v)
        index = transaction.create_item(
            ItemKind.INDEX, (*PUBLIC, "t_a"), "CREATE INDEX", uses=[t], on_id=t, index_key=(0,), cluster_id="u1"
        )
        with pytest.raises(SqlError) as caught:
            transaction.drop_item(t, cascade=False)
        assert caught.value.sqlstate == "2BP01"
        assert caught.value.detail == "view v depends on table t\nview w depends on table t"
        assert transaction.drop_item(w, cascade=False) == [w]
        assert transaction.drop_item(t, cascade=True) == [index, v, t]
        state = await catalog.commit(transaction)
        assert state.items == {}
        assert state.unfinalized_shards == ["s7"]

    run(body)


def test_clusters_gain_and_lose_replicas() -> None:
    async def body(client: PersistClient) -> None:
        transaction = (await Catalog.open(client)).begin()
        cluster = transaction.create_cluster("c", "50cc", 2)
        assert [replica.name for replica in transaction.state.replicas_of(cluster).values()] == ["r1", "r2"]
        transaction.alter_cluster("c", replication_factor=3)
        transaction.alter_cluster("c", replication_factor=1, size="200cc")
        assert [(r.name, r.size) for r in transaction.state.replicas_of(cluster).values()] == [("r1", "200cc")]
        transaction.drop_cluster("c", cascade=False)
        with pytest.raises(SqlError, match='unknown cluster "c"'):
            transaction.drop_cluster("c", cascade=False)

    run(body)


def test_a_rename_reaches_the_sql_of_dependents() -> None:
    async def body(client: PersistClient) -> None:
        transaction = (await Catalog.open(client)).begin()
        t = table(transaction, "t")
        v = view(transaction, "v", "t", t)
        transaction.rename_item(t, "Select")
        assert transaction.state.items[v].create_sql == (
            'CREATE VIEW materialize.public.v AS SELECT t.a FROM materialize.public."Select" AS t'
        )
        assert transaction.state.items_by_name[*PUBLIC, "Select"].id == t

    run(body)


def test_renaming_touches_only_the_full_name() -> None:
    sql = """SELECT x.t, 'materialize.public.t', public.t.a FROM "materialize".public.t AS t, materialize.public.tt"""
    renamed = rename_references(sql, (*PUBLIC, "t"), (*PUBLIC, "u"))
    assert renamed == (
        """SELECT x.t, 'materialize.public.t', public.t.a FROM materialize.public.u AS t, materialize.public.tt"""
    )


def test_names_resolve_along_the_search_path() -> None:
    async def body(client: PersistClient) -> None:
        transaction = (await Catalog.open(client)).begin()
        transaction.create_schema("materialize", "other")
        t = table(transaction, "t")
        hidden = transaction.create_item(ItemKind.TABLE, ("materialize", "other", "o"), "", desc=DESC)
        session = SessionCatalog(transaction.state)
        assert session.resolve(("t",)).id == t
        assert session.resolve(("other", "o")).id == hidden
        assert session.resolve(("materialize", "public", "t")).id == t
        assert session.full_name(("new",)) == ("materialize", "public", "new")
        with pytest.raises(SqlError) as caught:
            session.resolve(("o",))
        assert (caught.value.sqlstate, caught.value.hint) == (
            "42P01",
            "There is materialize.other.o: qualify the name, or add its schema to search_path.",
        )
        for parts, sqlstate in (
            (("no", "t"), "3F000"),
            (("no", "public", "t"), "3D000"),
            (("a", "b", "c", "d"), "42601"),
        ):
            with pytest.raises(SqlError) as caught:
                session.resolve(parts)
            assert caught.value.sqlstate == sqlstate
        with pytest.raises(SqlError, match="no schema has been selected"):
            SessionCatalog(transaction.state, search_path=("gone",)).full_name(("x",))

    run(body)
