"""`RpcConsensus` against a server: results, errors, sizes, restarts, frozen servers, closing."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import structlog

from penstock.committer import AddressError, CommitterServer, InProcessConsensus, InvalidRequest, RpcConsensus, metrics
from penstock.committer import committer_pb2 as pb
from penstock.committer import committer_pb2_grpc as pb_grpc
from penstock.persist import CasResult, Consensus, LocalPubSub, MemConsensus, SeqNo, Versioned
from penstock.runtime import Indeterminate


def version(seqno: int, data: bytes = b"x") -> Versioned:
    return Versioned(SeqNo(seqno), data)


@asynccontextmanager
async def serving(consensus: Consensus, address: str) -> AsyncIterator[str]:
    server = CommitterServer(consensus, LocalPubSub())
    try:
        yield await server.listen(address)
    finally:
        await server.close(0.1)


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"unix:{tmp_path}/committer.sock" if request.param == "unix" else "127.0.0.1:0"


def test_results_travel(address: str) -> None:
    async def main() -> None:
        async with serving(InProcessConsensus(MemConsensus()), address) as target:
            client = RpcConsensus(target)
            assert await client.head("s") is None
            assert await client.scan("s", SeqNo(0)) == []
            assert await client.compare_and_set("s", version(1)) is CasResult.MISMATCH
            assert await client.compare_and_set("s", version(0, b"")) is CasResult.COMMITTED
            assert await client.compare_and_set("s", version(1, b"one")) is CasResult.COMMITTED
            assert await client.head("s") == version(1, b"one")
            assert await client.head("s", linearized=False) == version(1, b"one")
            assert await client.scan("s", SeqNo(0)) == [version(0, b""), version(1, b"one")]
            assert await client.scan("s", SeqNo(0), 1) == [version(0, b"")]
            assert await client.truncate("s", SeqNo(1)) == 1
            assert await client.truncate("s", SeqNo(1)) == 0
            assert await client.list_keys() == ["s"]
            await client.close()

    asyncio.run(main())


def test_garbage_never_reaches_the_store(tmp_path: Path) -> None:
    async def main() -> None:
        class Untouchable:
            def __getattr__(self, name: str) -> object:
                raise AssertionError(f"{name} reached the store")

        async with serving(Untouchable(), f"unix:{tmp_path}/c") as target:  # type: ignore[arg-type]
            big = 2**64 - 1
            bad = [
                pb.Request(head=pb.HeadRequest(key="")),
                pb.Request(head=pb.HeadRequest(key="k" * 10_000)),
                pb.Request(compare_and_set=pb.CompareAndSetRequest(key="s")),
                pb.Request(compare_and_set=pb.CompareAndSetRequest(key="s", seqno=big)),
                pb.Request(scan=pb.ScanRequest(key="s", from_seqno=big, limit=1)),
                pb.Request(scan=pb.ScanRequest(key="s", from_seqno=0, limit=0)),
                pb.Request(truncate=pb.TruncateRequest(key="s", seqno=big)),
                pb.Request(),
            ]
            refused = metrics.REFUSED.labels("invalid")._value.get()
            async with grpc.aio.insecure_channel(target) as channel:
                call = pb_grpc.ConsensusStub(channel).Operate()
                await call.write(pb.Requests(requests=bad))
                answers: list[pb.Response] = []
                while len(answers) < len(bad):
                    answers += (await call.read()).responses
                call.cancel()
            for response in answers:
                assert response.err.determinacy == pb.INVALID, response
            assert metrics.REFUSED.labels("invalid")._value.get() == refused + len(bad)
            client = RpcConsensus(target)
            with pytest.raises(InvalidRequest):
                await client.head("")
            with pytest.raises(InvalidRequest):
                await client.compare_and_set("s", version(-1))
            await client.close()

    asyncio.run(main())


def test_a_restarted_server_is_found_again(tmp_path: Path) -> None:
    async def main() -> None:
        store = MemConsensus()
        address = f"unix:{tmp_path}/c"
        client = RpcConsensus(address, timeout_s=20.0)
        async with serving(store, address):
            await client.compare_and_set("s", version(0))
        waiting = asyncio.ensure_future(client.head("s"))
        await asyncio.sleep(0.05)
        assert not waiting.done(), "a call waits for the server to come back"
        async with serving(store, address):
            assert await waiting == version(0)
            assert await client.compare_and_set("s", version(1)) is CasResult.COMMITTED
        await client.close()

    asyncio.run(main())


def test_the_client_says_once_where_it_dials_and_each_time_that_it_lost_or_found_the_committer(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/c"

    async def main() -> list[str]:
        store, client = MemConsensus(), RpcConsensus(address, timeout_s=20.0)
        with structlog.testing.capture_logs() as logs:

            def said() -> list[str]:
                return [log["event"] for log in logs if log.get("target") == address or "connecting" in log["event"]]

            for round_ in (1, 2):
                async with serving(store, address):
                    await client.head("s")
                    await client.list_keys()  # over the other stream
                async with asyncio.timeout(20):
                    while said().count("no connection to the committer") < round_:  # noqa: ASYNC110
                        await asyncio.sleep(0.001)
            await client.close()
            return said()

    said = asyncio.run(main())
    assert said[:3] == [f"connecting to the committer: {address}", "connected", "no connection to the committer"]
    assert set(said[3:]) == {"connected to the committer again", "no connection to the committer"}


def test_no_server_is_indeterminate_after_the_deadline(tmp_path: Path) -> None:
    async def main() -> None:
        client = RpcConsensus(f"unix:{tmp_path}/nobody", timeout_s=0.2)
        with pytest.raises(Indeterminate, match="nobody"):
            await client.head("s")
        await client.close()

    asyncio.run(main())


def test_a_call_that_waits_for_a_server_can_be_cancelled(tmp_path: Path) -> None:
    async def main() -> None:
        client = RpcConsensus(f"unix:{tmp_path}/nobody", timeout_s=60.0)
        for delay_s in (0.0, 0.001, 0.02):
            reading = asyncio.ensure_future(client.head("s"))
            await asyncio.sleep(delay_s)
            reading.cancel()
            async with asyncio.timeout(10):
                with pytest.raises(asyncio.CancelledError):
                    await reading
        await client.close()

    asyncio.run(main())


SERVER = """
import asyncio, sys
from penstock.committer import CommitterServer, InProcessConsensus
from penstock.persist import LocalPubSub, MemConsensus

async def main():
    server = CommitterServer(InProcessConsensus(MemConsensus()), LocalPubSub())
    await server.listen(sys.argv[1])
    print("READY", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def start_server(address: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", SERVER, address], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "READY":
        assert process.poll() is None
    return process


def test_a_frozen_server_is_noticed_and_a_killed_one_replaced(tmp_path: Path) -> None:
    """SIGSTOP leaves the connection open and silent; SIGKILL leaves the socket's file behind."""
    address = f"unix:{tmp_path}/c"

    async def main() -> None:
        process = start_server(address)
        try:
            client = RpcConsensus(address, timeout_s=1.0)
            assert await client.compare_and_set("s", version(0)) is CasResult.COMMITTED
            process.send_signal(signal.SIGSTOP)
            with pytest.raises(Indeterminate):
                await client.head("s")
            process.kill()
            process.wait()
            process = start_server(address)
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert await client.head("s") is None
                        break
                    except Indeterminate:
                        continue
            await client.close()
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    asyncio.run(main())


def test_closing_fails_the_calls_in_flight_without_cancelling_their_tasks(tmp_path: Path) -> None:
    class Stuck(MemConsensus):
        async def head(self, key: str, *, linearized: bool = True) -> Versioned | None:
            await asyncio.Event().wait()
            return None

    async def main() -> None:
        async with serving(Stuck(), f"unix:{tmp_path}/c") as target:
            client = RpcConsensus(target)
            await client.list_keys()
            reading = asyncio.ensure_future(client.head("s"))
            cancelled = asyncio.ensure_future(client.head("s"))
            await asyncio.sleep(0.05)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            await client.close()
            with pytest.raises(Indeterminate):
                await reading
            with pytest.raises(Indeterminate):
                await client.head("s")
            await client.close()

    asyncio.run(main())


def test_an_address_in_use_or_out_of_reach_is_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(MemConsensus(), "127.0.0.1:0") as target:
            server = CommitterServer(MemConsensus(), LocalPubSub())
            for address in (target, f"unix:{tmp_path}/missing/dir", "0.0.0.0:0"):
                with pytest.raises(AddressError):
                    await server.listen(address)
            await server.close()

    asyncio.run(main())


def test_the_socket_is_for_its_owner_only(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(MemConsensus(), f"unix:{tmp_path}/c"):
            assert os.stat(tmp_path / "c").st_mode & 0o777 == 0o600

    asyncio.run(main())


def test_nothing_is_left_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serving(InProcessConsensus(MemConsensus()), f"unix:{tmp_path}/c") as target:
            client = RpcConsensus(target)
            await asyncio.gather(*(client.compare_and_set(f"s{i}", version(0)) for i in range(50)))
            await client.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in others if "penstock" in repr(task)]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            asyncio.run(main(), debug=True)
        gc.collect()
    # gRPC's poller serves all event loops that the process ever had, and complains about those of earlier tests
    records = [record for record in caplog.records if "PollerCompletionQueue" not in record.getMessage()]
    assert not [record for record in records if record.levelname in ("ERROR", "CRITICAL")]
