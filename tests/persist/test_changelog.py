"""`Changelog`: storage alone, as a program uses it that knows nothing of shards."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from pathlib import Path

import pyarrow as pa
import pytest

from penstock.persist import Changelog, ShardId, SinceError, VersionConflict, new_shard_id

SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string())])

APPENDER = """
import asyncio, sys
import pyarrow as pa
from penstock.persist import Changelog
async def main(blob, consensus, shard, name, count):
    schema = pa.schema([("id", pa.int64()), ("name", pa.string())])
    async with await Changelog.open(blob, consensus, shard, schema) as table:
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(count):
            await table.append(pa.table({"id": [number], "name": [name]}, schema=schema))
asyncio.run(main(*sys.argv[1:5], int(sys.argv[5])))
"""


def rows(*ids: int) -> pa.Table:
    return pa.table({"id": list(ids), "name": [f"n{number}" for number in ids]}, schema=SCHEMA)


def ids(table: pa.Table) -> list[int]:
    return sorted(table["id"].to_pylist())


async def opened(folder: Path, shard: ShardId) -> Changelog:
    return await Changelog.open(f"file:{folder / 'blob'}", f"sqlite:{folder / 'consensus'}", shard, SCHEMA)


def test_versions_stay_readable_across_processes_lives(tmp_path: Path) -> None:
    async def main() -> None:
        shard = new_shard_id()
        async with await opened(tmp_path, shard) as table:
            assert await table.version() == -1
            assert (await table.read()).schema == SCHEMA
            assert await table.append(rows(1, 2)) == 0
            assert await table.append(rows(3).to_batches()[0]) == 1
            assert await table.append(rows(1), diffs=[-1]) == 2
            assert await table.append(rows()) == 3
        async with await opened(tmp_path, shard) as table:
            assert await table.version() == 3
            assert [ids(await table.read(version)) for version in range(4)] == [[1, 2], [1, 2, 3], [2, 3], [2, 3]]
            assert ids(await table.read()) == [2, 3]
            assert (await table.read(columns=["name"])).column_names == ["name"]

    asyncio.run(main())


def test_changes_come_version_by_version_and_go_on(tmp_path: Path) -> None:
    async def main() -> None:
        shard = new_shard_id()
        async with await opened(tmp_path, shard) as table, await opened(tmp_path, shard) as other:
            for version in range(5):
                await table.append(rows(version, version), diffs=[2, -1])
            seen = []
            async with asyncio.timeout(20), aclosing(other.changes()) as changes:
                async for change in changes:
                    seen.append((change.version, change.rows["id"].to_pylist(), change.diffs.to_pylist()))
                    if change.version == 4:
                        await table.append(rows(99))
                    if change.version == 5:
                        break
            assert seen == [*((version, [version], [1]) for version in range(5)), (5, [99], [1])]
            async with asyncio.timeout(20), aclosing(other.changes(after=3)) as changes:
                assert [(await anext(changes)).version for _ in range(2)] == [4, 5]

    asyncio.run(main())


def test_an_append_for_a_version_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        shard = new_shard_id()
        async with await opened(tmp_path, shard) as table, await opened(tmp_path, shard) as other:
            assert await table.append(rows(1), expect=-1) == 0
            with pytest.raises(VersionConflict) as conflict:
                await other.append(rows(2), expect=-1)
            assert conflict.value.current == 0
            assert await other.append(rows(2), expect=0) == 1
            assert await table.append(rows(3)) == 2  # it had seen version 0 only
            assert ids(await table.read()) == [1, 2, 3]

    asyncio.run(main())


def test_history_that_was_given_up_cannot_be_read(tmp_path: Path) -> None:
    async def main() -> None:
        shard = new_shard_id()
        async with await opened(tmp_path, shard) as table, await opened(tmp_path, shard) as other:
            for number in range(4):
                await table.append(rows(number))
            with pytest.raises(ValueError, match="no version 4"):
                await table.forget_history(4)
            await table.forget_history(2)
            await other.forget_history(1)  # never back
            with pytest.raises(SinceError):
                await other.read(1)
            with pytest.raises(SinceError):
                async with aclosing(other.changes()) as changes:
                    await anext(changes)
            assert ids(await other.read(2)) == [0, 1, 2]

    asyncio.run(main())


def test_two_processes_append_without_an_error_for_either(tmp_path: Path) -> None:
    count = 50

    async def main() -> None:
        shard = new_shard_id()
        urls = (f"file:{tmp_path / 'blob'}", f"sqlite:{tmp_path / 'consensus'}")
        pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
        processes = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", APPENDER, *urls, shard, name, str(count), **pipes
            )
            for name in ("left", "right")
        ]
        async with asyncio.timeout(60):
            for process in processes:
                assert process.stdout is not None
                assert await process.stdout.readline() == b"ready\n"
            for process in processes:
                await process.communicate(b"go\n")
        assert [process.returncode for process in processes] == [0, 0]
        async with await opened(tmp_path, shard) as table:
            assert await table.version() == 2 * count - 1
            found = sorted(zip(*(await table.read()).to_pydict().values(), strict=True))
            assert found == sorted((number, name) for number in range(count) for name in ("left", "right"))

    asyncio.run(main())
