"""One of several processes that race for the versions of one key; prints those it won.

Arguments: URL of the consensus store, name of the process, number of versions. Starts when a line comes in.
"""

from __future__ import annotations

import asyncio
import sys

from penstock.persist import CasResult, open_consensus
from tests.persist.consensus_suite import compare_and_set


async def main(url: str, name: str, versions: int) -> None:
    store = open_consensus(url)
    await store.head("race")
    print("ready", flush=True)
    sys.stdin.readline()
    for seqno in range(versions):
        if await compare_and_set(store, "race", seqno, name.encode()) is CasResult.COMMITTED:
            print(seqno, flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
