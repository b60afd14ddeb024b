"""The replica's process: it ends when told, when its parent dies, and survives bad peers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from penstock.replica import compute_pb2 as pb
from penstock.replica import compute_pb2_grpc as pb_grpc

DEADLINE_SECONDS = 30


def spawn(directory: Path, *options: str) -> subprocess.Popen[bytes]:
    """A replica without a committer: nothing here needs one."""
    arguments = ["--listen", f"unix:{directory}/r.sock", "--consensus", f"unix:{directory}/none.sock"]
    return subprocess.Popen(
        [sys.executable, "-m", "penstock.replica", *arguments, "--blob", f"file:{directory}/blob", *options],
        stdin=subprocess.PIPE,
        stderr=(directory / "log").open("ab"),
    )


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = spawn(tmp_path, "--end-with-stdin")
    until(lambda: "replica ready" in (tmp_path / "log").read_text())
    yield process
    process.kill()
    process.wait()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def talk(directory: Path, body: Callable[[Any], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            async with grpc.aio.insecure_channel(f"unix:{directory}/r.sock") as channel:
                await body(pb_grpc.ComputeStub(channel))

    asyncio.run(main())


def hello(epoch: int) -> pb.Command:
    return pb.Command(hello=pb.Hello(epoch=epoch, nonce=b"n%d" % epoch))


COMPLETE = pb.Command(initialization_complete=pb.InitializationComplete())
INSTANCE = pb.Command(create_instance=pb.CreateInstance(txns_shard="s"))


def test_it_ends_on_sigterm(replica: subprocess.Popen[bytes]) -> None:
    replica.send_signal(signal.SIGTERM)
    assert replica.wait(timeout=5) == 0


def test_it_ends_with_its_parent(replica: subprocess.Popen[bytes]) -> None:
    assert replica.stdin is not None
    replica.stdin.close()
    assert replica.wait(timeout=5) == 0


def test_it_dies_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-m', 'penstock.replica', '--listen', 'unix:{tmp_path}/r.sock',"
        f" '--consensus', 'unix:{tmp_path}/none.sock', '--blob', 'file:{tmp_path}/blob', '--end-with-stdin'],"
        f" stdin=subprocess.PIPE, stderr=open('{tmp_path}/log', 'ab'))\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    until(lambda: (tmp_path / "log").exists() and "replica ready" in (tmp_path / "log").read_text())
    parent.kill()
    parent.wait()
    until(lambda: not running(child))


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"


def test_bad_arguments_are_explained(tmp_path: Path) -> None:
    for listen in ("0.0.0.0:80", "unix:", "nowhere"):
        run = subprocess.run(
            [sys.executable, "-m", "penstock.replica", "--listen", listen, "--consensus", "unix:/x", "--blob", "mem:"],
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        assert run.returncode == 2
        assert "--listen" in run.stderr


def test_newer_sessions_win_and_older_coordinators_are_refused(
    replica: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    async def body(stub: Any) -> None:
        first = stub.Session()
        await first.write(hello(1))
        await first.write(INSTANCE)
        await first.write(COMPLETE)
        assert (await first.read()).ready.nonce == b"n1"
        second = stub.Session()
        await second.write(hello(2))
        await second.write(COMPLETE)
        assert (await second.read()).ready.nonce == b"n2"
        assert await first.read() is grpc.aio.EOF
        stale = stub.Session()
        await stale.write(hello(1))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stale.read()
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        rude = stub.Session()
        await rude.write(COMPLETE)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await rude.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        second.cancel()

    talk(tmp_path, body)


def test_garbage_becomes_a_status_and_the_session_goes_on(replica: subprocess.Popen[bytes], tmp_path: Path) -> None:
    async def body(stub: Any) -> None:
        session = stub.Session()
        for command in (hello(1), INSTANCE, COMPLETE):
            await session.write(command)
        assert (await session.read()).WhichOneof("kind") == "ready"
        garbage = pb.CreateDataflow(id="u1", description=b"\xff\x00garbage", as_of=1, exports=["u1"])
        await session.write(pb.Command(create_dataflow=garbage))
        response = await session.read()
        assert response.status.stalled
        assert "decode" in response.status.message
        await session.write(pb.Command(schedule=pb.Schedule(id="nothing")))
        await session.write(pb.Command(allow_compaction=pb.AllowCompaction(id="nothing", frontier=5)))
        peek = pb.Peek(uuid=b"p", timestamp=1, inputs={"t": pb.PeekInput(index=pb.IndexRead(id="u9"))}, credit=1)
        await session.write(pb.Command(peek=peek))
        response = await session.read()
        assert response.peek_end.error.sqlstate == "42704"
        await session.write(
            pb.Command(peek=pb.Peek(uuid=b"q", query="SELECT 1 AS one", credit=1, result_bytes_max=1000))
        )
        response = await session.read()
        assert response.peek_rows.uuid == b"q", response
        assert (await session.read()).peek_end.WhichOneof("kind") == "complete"
        session.cancel()

    talk(tmp_path, body)
