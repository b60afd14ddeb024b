"""`penstock inspect` on real stores: what it says, that it writes nothing, and that damage is told, not thrown."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from penstock.cli.inspect import _age, _size, app
from penstock.persist import FileBlob, PersistClient, PersistConfig, ShardId, SqliteConsensus, new_shard_id
from penstock.persist.collect import roll_up
from penstock.persist.compact import compact
from penstock.persist.txn import TxnsWriter
from penstock.runtime import Frontier, Timestamp
from tests.persist.shards import SCHEMA, append, updates
from tests.persist.txn.cluster import rows

AMOUNTS = ("current_parts", "current_rollups", "older", "pending", "leaked", "foreign")


class Database:
    """A data directory with a shard of everything, a table, and a transaction log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blob").mkdir(parents=True)
        self.shard, self.txns, self.table = new_shard_id(), new_shard_id(), new_shard_id()

    async def fill(self, *, close: bool = True) -> tuple[FileBlob, SqliteConsensus]:
        blob, consensus = FileBlob(self.path / "blob"), SqliteConsensus(self.path / "consensus.sqlite")
        config = PersistConfig(maintenance=False, inline_bytes=1000)
        client = PersistClient(blob, consensus, config=config)
        writer = await client.open_writer(self.shard, SCHEMA, purpose="test")
        for t in range(8):
            await append(writer, [(k, t, 1) for k in range(5 if t % 2 else 500)], t, t + 1)
        await client.open_since(self.shard, "controller", purpose="holds for the test", opaque=7)
        await client.open_reader(self.shard, SCHEMA, purpose="reads for the test")
        mine = client._shards[self.shard]
        await roll_up(mine, mine.state)
        await compact(mine, mine.state.batches[:4])
        await writer.batch(updates([(k, 9, 1) for k in range(500)]), Frontier(8), Frontier(10))
        await blob.set(f"{self.shard}/somebody-elses", b"12345")
        await blob.set(f"s{'0' * 8}-lost/p1", b"123")
        txns = await TxnsWriter.open(client, self.txns)
        assert await txns.register({self.table: SCHEMA}, Timestamp(5)) is None
        assert await txns.commit_at({self.table: [rows(6, (1, "a"))]}, Timestamp(6)) is None
        if close:
            await txns._tasks.close()
            await client._tasks.close()  # as killed: readers and writers stay in the states
            await blob.close()
            await consensus.close()
        return blob, consensus

    def ask(self, *arguments: str) -> Any:
        result = CliRunner().invoke(app, [*arguments, "--data-dir", str(self.path), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def tell(self, *arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments, "--data-dir", str(self.path)], env={"COLUMNS": "250"})
        assert result.exit_code == 0, result.output
        return str(result.stdout)

    def files(self) -> dict[str, tuple[int, bytes]]:
        paths = [path for path in self.path.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal"))]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@pytest.fixture
def database(tmp_path: Path) -> Database:
    one = Database(tmp_path)
    asyncio.run(one.fill())
    return one


def test_state(database: Database) -> None:
    answer = database.ask("state", "--shard", database.shard)
    assert set(answer) == {
        "shard", "state", "live_diffs", "live_diff_bytes", "earliest", "newest_diffs", "problems",
    }  # fmt: skip
    state = answer["state"]
    assert answer["problems"] == []
    assert (state["since"], state["upper"], state["tombstone"]) == (0, 8, False)
    assert state["schemas"] == [["k int64", "v string"]]
    assert [(b["lower"], b["upper"]) for b in state["batches"]] == [(0, 4), (4, 5), (5, 6), (6, 7), (7, 8)]
    assert sum(b["rows"] for b in state["batches"]) == state["rows"] == 4 * 505
    assert state["batches"][0]["runs"] == 1
    [reader] = state["readers"]
    assert reader["purpose"] == "reads for the test"
    assert 0 <= reader["heartbeat_age_ms"] < 60_000 < reader["expires_ms"]
    [critical] = state["criticals"]
    assert (critical["id"], critical["opaque"], critical["since"]) == ("controller", 7, 0)
    assert [writer["upper"] for writer in state["writers"]] == [8]
    assert len(state["rollups"]) == 1
    text = database.tell("state", "--shard", database.shard)
    for words in ("upper 8", "k int64", "holds for the test", "reads for the test", "opaque 7", "rollup of version"):
        assert words in text


def test_shard(database: Database) -> None:
    answer = database.ask("shard", "--shard", database.shard)
    assert answer["live_diffs"] == len(answer["newest_diffs"]) == answer["state"]["seqno"] + 1
    assert answer["live_diff_bytes"] == sum(diff["bytes"] for diff in answer["newest_diffs"])
    changed = [change for diff in answer["newest_diffs"] for change in diff["changed"]]
    assert any(change.startswith("compacted 4 batches") for change in changed)
    assert {view["shard"] for view in database.ask("shard")["shards"]} == {
        database.shard, database.txns, database.table,
    }  # fmt: skip
    assert "compacted 4 batches" in database.tell("shard", "--shard", database.shard)
    assert database.shard in database.tell("shard")


def test_blobs_and_usage_add_up(database: Database) -> None:
    answer = database.ask("blobs", "--shard", database.shard)
    on_disk = [path for path in (database.path / "blob" / database.shard).iterdir() if path.is_file()]
    assert sum(answer[name]["blobs"] for name in AMOUNTS) == len(on_disk)
    assert sum(answer[name]["bytes"] for name in AMOUNTS) == sum(path.stat().st_size for path in on_disk)
    assert answer["current_rollups"]["blobs"] == 1
    assert answer["older"]["blobs"] == 2, "what was compacted away is held by the reader"
    assert (answer["pending"]["blobs"], answer["leaked"]["blobs"]) == (1, 0)
    assert (answer["foreign"]["blobs"], answer["foreign"]["bytes"]) == (1, 5)
    assert {leak["age_ms"] is None for leak in answer["leaks"]} == {True, False}
    later = database.ask("blobs", "--shard", database.shard, "--leaked-after-hours", "0")
    assert (later["pending"]["blobs"], later["leaked"]["blobs"]) == (0, 1)
    usage = database.ask("usage")
    assert usage["unattributed"] == {"blobs": 1, "bytes": 3}
    for name in AMOUNTS:
        assert usage["total"][name]["bytes"] == sum(shard[name]["bytes"] for shard in usage["shards"])
    assert usage["shards"][0]["shard"] == database.shard, "the largest first"
    assert "leaked" in database.tell("blobs", "--shard", database.shard)
    assert "1 blobs of unknown shards" in database.tell("usage")


def test_txns(database: Database) -> None:
    answer = database.ask("txns")
    assert answer["shard"] == database.txns
    assert answer["logical_upper"] == 7
    assert answer["problems"] == []
    [table] = answer["tables"]
    assert table["shard"] == database.table
    assert (table["registered_at"], table["physical_upper"], table["unapplied"]) == (5, 6, 1)
    assert table["oldest_unapplied"] == 6
    assert table["columns"] == ["k int64", "v string"]
    assert database.table in database.tell("txns")
    assert database.ask("txns", "--shard", database.txns) == answer


def test_nothing_is_written(database: Database) -> None:
    before = database.files()
    for command in (
        ["shard"],
        ["usage"],
        ["txns"],
        ["state", "--shard", database.shard],
        ["blobs", "--shard", database.shard],
    ):
        database.ask(*command)
    assert database.files() == before
    assert not (database.path / "blob" / ".tmp" / "anything").exists()


def test_a_running_database_is_looked_into(tmp_path: Path) -> None:
    database = Database(tmp_path)
    stores = asyncio.run(database.fill(close=False))  # its connections and threads are still there
    assert database.ask("state", "--shard", database.shard)["state"]["upper"] == 8
    assert database.ask("usage")["total"]["current_parts"]["blobs"] > 0
    for store in stores:
        asyncio.run(store.close())


def blob_files(database: Database, part: str) -> list[Path]:
    return [path for path in (database.path / "blob" / database.shard).iterdir() if part in path.name]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "garbage"])
def test_a_damaged_rollup_is_reported_and_older_ones_serve(database: Database, damage: str) -> None:
    [rollup] = [path for path in blob_files(database, "r") if path.name.startswith("v")]
    data = rollup.read_bytes()
    if damage == "missing":
        rollup.unlink()
    else:
        rollup.write_bytes({"flipped": data[:-3] + b"\xff\xff\xff", "truncated": data[:7], "garbage": b"?"}[damage])
    answer = database.ask("state", "--shard", database.shard)
    assert answer["state"]["upper"] == 8, "all versions are there: it can do without"
    assert any("rollup" in problem for problem in answer["problems"])
    assert "problem:" in database.tell("state", "--shard", database.shard)


def test_a_shard_that_cannot_be_rebuilt_is_reported(database: Database) -> None:
    async def damage(data: bytes) -> None:
        consensus = SqliteConsensus(database.path / "consensus.sqlite")
        base = consensus._writing.execute("SELECT number FROM keys WHERE key = ?", (database.shard,)).fetchone()[0]
        consensus._writing.execute("UPDATE versions SET data = ? WHERE position = ?", (data, base * 2**40 + 3))
        await consensus.close()

    asyncio.run(damage(b"\x01\xc1"))
    for path in blob_files(database, "r"):
        if path.name.startswith("v"):
            path.write_bytes(b"PSR1")
    answer = database.ask("shard", "--shard", database.shard)
    assert answer["state"] is None
    assert any("version 3" in problem for problem in answer["problems"])
    assert any("cannot be rebuilt" in problem for problem in answer["problems"])
    database.tell("shard")
    database.tell("usage")
    blobs = database.ask("blobs", "--shard", database.shard)
    assert blobs["foreign"]["blobs"] > 0
    assert blobs["problems"]


def test_a_missing_part_is_reported(database: Database) -> None:
    for path in blob_files(database, "compaction"):
        path.unlink()
    [problem] = database.ask("blobs", "--shard", database.shard)["problems"]
    assert "is referred to and missing" in problem


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["usage"], "say where to look"),
        (
            ["usage", "--consensus", "sqlite:/nowhere/c.sqlite", "--blob", "file:/tmp"],
            "cannot read the consensus store",
        ),
        (["usage", "--consensus", "what:ever", "--blob", "file:/tmp"], "is not a consensus store"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("/nowhere").exists()


def test_an_unknown_shard_has_no_versions(database: Database) -> None:
    answer = database.ask("state", "--shard", ShardId("s-unknown"))
    assert answer["state"] is None
    assert answer["problems"] == ["consensus has no versions of it"]


def test_sizes_and_ages_are_for_people() -> None:
    assert [_size(n) for n in (0, 1023, 1024, 5 << 20, 3 << 40)] == [
        "0 bytes",
        "1023 bytes",
        "1.0 KiB",
        "5.0 MiB",
        "3.0 TiB",
    ]
    assert [_age(ms) for ms in (5, 1500, 90_000, 7_200_000, 172_800_000, -1500)] == [
        "5 ms", "1.5 s", "1.5 min", "2.0 h", "2.0 d", "-1.5 s",
    ]  # fmt: skip
