"""What an append of one row costs when the shard has 0, 1,000 and 10,000 earlier versions. It should be the same.

The table formats reread or rewrite something that grows with their history; deltalake stands for them, up to as many
versions as take it a bearable time.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from bench.report import Report, percentile
from bench.table_peers import SCHEMA, deltalake
from penstock.persist import Changelog, new_shard_id

SAMPLES = 200
HISTORIES = (0, 1_000, 10_000)
PEER_HISTORIES = (0, 1_000)
ROW = pa.table([[1], [2], [0.5], ["one row"]], schema=SCHEMA)


def run(report: Report, *, quick: bool) -> None:
    scale = 10 if quick else 1
    ours = asyncio.run(_ours([history // scale for history in HISTORIES]))
    theirs: dict[int, float] = {}
    try:
        theirs = _deltalake([history // scale for history in PEER_HISTORIES])
    except ModuleNotFoundError as error:
        report.note(f"deltalake is not installed (extra `bench`: {error.name}); left out")
    peer = "deltalake" if theirs else None
    for history, value in ours.items():
        report.add(f"append_ms_p50_{history}", value, "ms", peer=peer, peer_value=theirs.get(history))
    for history, value in list(ours.items())[1:]:
        known = theirs[history] / theirs[0] if history in theirs else None
        report.add(f"slowdown_{history}", value / ours[0], "times", peer=peer, peer_value=known)


async def _ours(histories: list[int]) -> dict[int, float]:
    """Median milliseconds of an append, by earlier versions."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        urls = f"file:{folder}/blob", f"sqlite:{folder}/consensus"
        async with await Changelog.open(*urls, new_shard_id(), SCHEMA) as table:
            for _ in range(SAMPLES):  # warm
                await table.append(ROW)
        async with await Changelog.open(*urls, new_shard_id(), SCHEMA) as table:
            for history in histories:
                while await table.version() + 1 < history:
                    await table.append(ROW)
                samples = []
                for _ in range(SAMPLES):
                    started = time.perf_counter()
                    await table.append(ROW)
                    samples.append((time.perf_counter() - started) * 1000)
                found[history] = percentile(samples, 0.5)
    return found


def _deltalake(histories: list[int]) -> dict[int, float]:
    found = {}
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder, deltalake(Path(folder)) as table:
        versions = 0
        for history in histories:
            while versions < history:
                table.append(ROW)
                versions += 1
            samples = []
            for _ in range(SAMPLES):
                started = time.perf_counter()
                table.append(ROW)
                samples.append((time.perf_counter() - started) * 1000)
            versions += SAMPLES
            found[history] = percentile(samples, 0.5)
    return found
