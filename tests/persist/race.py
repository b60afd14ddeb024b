"""Processes that race for the versions of one key of a consensus store.

As a program (``python -m tests.persist.race URL NAME VERSIONS``): one of them. It says ``ready``, starts when a line
comes in, and prints the versions it won.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from penstock.persist import CasResult, SeqNo, open_consensus
from tests.persist.consensus_suite import compare_and_set

PROCESSES = 3
VERSIONS = 60


def race_processes(url: str) -> None:
    """Assert that each version has exactly one winner, and that the log holds what that one wrote."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"}
    racers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.persist.race", url, f"racer {number}", str(VERSIONS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(PROCESSES)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        answers = [racer.communicate(timeout=60)[0] for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
    assert [racer.returncode for racer in racers] == [0] * PROCESSES
    winners = {int(line): f"racer {number}" for number, answer in enumerate(answers) for line in answer.split()}
    assert sum(len(answer.split()) for answer in answers) == VERSIONS, "a version with two winners, or none"
    assert asyncio.run(_authors(url)) == winners


async def _authors(url: str) -> dict[int, str]:
    store = open_consensus(url)
    log = await store.scan("race", SeqNo(0))
    await store.close()
    return {version.seqno: version.data.decode() for version in log}


async def _race(url: str, name: str, versions: int) -> None:
    store = open_consensus(url)
    await store.head("race")
    print("ready", flush=True)
    sys.stdin.readline()
    for seqno in range(versions):
        if await compare_and_set(store, "race", seqno, name.encode()) is CasResult.COMMITTED:
            print(seqno, flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(_race(sys.argv[1], sys.argv[2], int(sys.argv[3])))
