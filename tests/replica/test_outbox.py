"""Responses on their way: frontiers are coalesced and never regress, the rest keeps its order and a bound."""

from __future__ import annotations

import asyncio

import numpy as np
import pyarrow as pa
import pytest

from penstock.replica import compute_pb2 as pb
from penstock.replica.outbox import Outbox
from penstock.replica.wire import updates_from_ipc, updates_to_ipc
from penstock.runtime import Frontier, Updates


def status(text: str) -> pb.Response:
    return pb.Response(status=pb.Status(id="u1", message=text))


def test_frontiers_are_coalesced_and_never_regress() -> None:
    async def main() -> None:
        outbox = Outbox()
        outbox.frontiers("u1", write=Frontier(0), input=Frontier(3))
        outbox.frontiers("u1", write=Frontier(5))
        outbox.frontiers("u2", output=Frontier(9))
        outbox.frontiers("u1", write=Frontier(4))
        outbox.send(status("a"))
        response = await outbox.next()
        reports = {report.id: report for report in response.frontiers.reports}
        assert (reports["u1"].write, reports["u1"].input) == (5, 3)
        assert not reports["u1"].HasField("output")
        assert reports["u2"].output == 9
        assert (await outbox.next()).status.message == "a"
        outbox.frontiers("u1", write=Frontier(5))
        waiting = asyncio.ensure_future(outbox.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        outbox.close()
        assert await waiting is None

    asyncio.run(main())


def test_a_reader_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.replica.outbox._QUEUED_BYTES_MAX", 100)

    async def main() -> None:
        outbox = Outbox()
        outbox.send(status("x" * 1000))  # one alone always goes
        assert (await outbox.next()).status.message == "x" * 1000
        for _ in range(3):
            outbox.send(status("x" * 60))
        assert await outbox.next() is None

    asyncio.run(main())


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("names", [[], ["a", "time"]])
def test_updates_survive_the_wire(count: int, names: list[str]) -> None:
    schema = pa.schema([pa.field(name, pa.int64()) for name in names], metadata={"k": "v"} if names else None)
    rows = Updates.empty(schema).rows
    if count and names:
        rows = pa.RecordBatch.from_arrays([pa.array(range(count))] * len(names), schema=schema)
    elif count:
        rows = pa.RecordBatch.from_struct_array(pa.array([{}] * count, pa.struct([])))
    updates = Updates(rows, np.arange(count, dtype=np.uint64), -np.arange(count, dtype=np.int64))
    back = updates_from_ipc(updates_to_ipc(updates))
    assert back.rows.num_rows == count
    assert back.schema.equals(schema, check_metadata=True)
    assert back.rows.equals(rows)
    assert back.times.tolist() == updates.times.tolist()
    assert back.diffs.tolist() == updates.diffs.tolist()
