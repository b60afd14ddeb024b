"""`penstock persistd` as a process: start, security, garbage, stores that come late or go, clean ends."""

import asyncio
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGSTOP, SIGTERM

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.committer import CredentialFiles, Credentials, RpcConsensus
from penstock.committer import committer_pb2 as pb
from penstock.committer import committer_pb2_grpc as pb_grpc
from penstock.persist import CasResult, StoreUnusable
from penstock.runtime import Indeterminate
from tests.committer.batching import version
from tests.committer.persistd_process import certificates, persistd

TOKEN = "a-token-of-some-length"


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(text)
    return path


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_it_serves_tells_what_it_does_and_ends_cleanly(number: int, tmp_path: Path) -> None:
    async def main(address: str) -> None:
        client = RpcConsensus(address)
        assert await client.compare_and_set("s", version(0)) is CasResult.COMMITTED
        assert await client.compare_and_set("s", version(0)) is CasResult.MISMATCH
        assert await client.head("s", linearized=False) == version(0)
        async with grpc.aio.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        await until(lambda: [e for e in process.events() if e["event"] == "heartbeat" and e["operations"]])
        await client.close()

    options = ["--stats-interval", "0.1", "--metrics-listen", "127.0.0.1:0", "--cache-shards", "100"]
    with persistd(tmp_path, "--listen", "127.0.0.1:0", "--consensus-url", "mem:", *options) as process:
        asyncio.run(main(process.ready()))
        where = next(event["address"] for event in process.events() if event["event"] == "metrics are served")
        with urllib.request.urlopen(f"http://{where}/metrics", timeout=10) as response:
            text = response.read().decode()
        assert 'committer_rpc_total{op="compare_and_set",result="committed"} 1.0' in text
        assert 'committer_rpc_total{op="compare_and_set",result="mismatch"} 1.0' in text
        for name in (
            "committer_rpc_duration_seconds_count",
            "committer_backing_duration_seconds_count",
            "committer_inflight_rpcs ",
            'committer_inflight_rpcs_by_op{op="head"}',
            "committer_cache_hits_total 1.0",
            "committer_cache_misses_total 0.0",
            "committer_cached_shards 1.0",
            "committer_cas_refresh_lag_seconds_count",
            "committer_batch_size_count",
            "committer_batch_duration_seconds_count",
        ):
            assert name in text
        process.signal(number)
        assert process.wait() == 0
        assert process.events()[-1]["event"] == "stopped"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--listen", "0.0.0.0:0", "--consensus-url", "mem:"], "can be reached from other hosts"),
        (["--listen", "nonsense", "--consensus-url", "mem:"], "neither unix:/path nor host:port"),
        (["--listen", "127.0.0.1:0", "--consensus-url", "redis://x"], "not a consensus store"),
        (["--listen", "127.0.0.1:0", "--consensus-url", "mem:", "--token-file", "/none"], "cannot read the token file"),
        (["--listen", "127.0.0.1:0", "--consensus-url", "mem:", "--tls-cert", "/none"], "go together"),
        (["--listen", "127.0.0.1:0", "--consensus-url", "mem:", "--metrics-listen", "x"], "metrics are served on"),
    ],
)
def test_what_cannot_work_is_refused_with_a_reason(arguments: list[str], why: str, tmp_path: Path) -> None:
    with persistd(tmp_path, *arguments) as process:
        assert process.wait() == 1
        assert why in process.log.read_text()


def test_a_short_token_is_refused(tmp_path: Path) -> None:
    arguments = ["--listen", "127.0.0.1:0", "--consensus-url", "mem:"]
    with persistd(tmp_path, *arguments, environment={"PENSTOCK_COMMITTER_TOKEN": "short"}) as process:
        assert process.wait() == 1
        assert "at least 16" in process.log.read_text()


def test_a_token_lets_it_listen_anywhere_and_keeps_others_out(tmp_path: Path) -> None:
    async def main(port: str) -> None:
        target = f"127.0.0.1:{port}"
        client = RpcConsensus(target, credentials=Credentials(token=TOKEN))
        assert await client.compare_and_set("s", version(0)) is CasResult.COMMITTED
        await client.close()
        for credentials in (Credentials(), Credentials(token="another-token-of-some-length")):
            for _ in range(2):
                stranger = RpcConsensus(target, credentials=credentials)
                with pytest.raises(StoreUnusable, match="token is missing or wrong"):
                    await stranger.head("s")
                await stranger.close()

    arguments = ["--listen", "0.0.0.0:0", "--consensus-url", "mem:", "--metrics-listen", "127.0.0.1:0"]
    token_file = str(write(tmp_path, "token", TOKEN + "\n"))
    with persistd(tmp_path, *arguments, "--token-file", token_file) as process:
        asyncio.run(main(process.ready().rpartition(":")[2]))
        refused = [event for event in process.events() if event["event"] == "refused"]
        assert [event["reason"] for event in refused] == ["token"], "counted each time, said once per peer"
        assert TOKEN not in process.log.read_text()
        where = next(event["address"] for event in process.events() if event["event"] == "metrics are served")
        with urllib.request.urlopen(f"http://{where}/metrics", timeout=10) as response:
            line = next(x for x in response.read().decode().splitlines() if x.startswith("committer_refused_total{"))
        assert float(line.rpartition(" ")[2]) >= 4


def test_mutual_tls_lets_in_whom_the_authority_signed(tmp_path: Path) -> None:
    files = certificates(tmp_path)
    server = ["--tls-cert", str(files["cert"]), "--tls-key", str(files["key"]), "--tls-ca", str(files["ca"])]

    async def main(port: str) -> None:
        target = f"127.0.0.1:{port}"
        ours = CredentialFiles(None, files["cert"], files["key"], files["ca"]).load({})
        client = RpcConsensus(target, credentials=ours)
        assert await client.compare_and_set("s", version(0)) is CasResult.COMMITTED
        await client.close()
        anonymous = CredentialFiles(authority=files["ca"]).load({})
        self_made = CredentialFiles(None, files["other_ca"], files["other_ca_key"], files["ca"]).load({})
        deceived = CredentialFiles(None, files["cert"], files["key"], files["other_ca"]).load({})
        for credentials in (anonymous, self_made, deceived):
            stranger = RpcConsensus(target, credentials=credentials, timeout_s=0.5)
            with pytest.raises(Indeterminate, match=r"no connection|connection broke"):
                await stranger.head("s")
            await stranger.close()

    with persistd(tmp_path, "--listen", "0.0.0.0:0", "--consensus-url", "mem:", *server) as process:
        asyncio.run(main(process.ready().rpartition(":")[2]))


def ended(connection: socket.socket) -> bool:
    """Whether the other side ends the connection; TimeoutError when it does not."""
    try:
        while connection.recv(65_536):
            pass
    except ConnectionError:
        pass
    return True


def test_garbage_harms_nobody(tmp_path: Path) -> None:
    async def main(address: str) -> None:
        client = RpcConsensus(address)
        assert await client.compare_and_set("s", version(0)) is CasResult.COMMITTED
        host, _, port = address.rpartition(":")
        for junk in (b"\x00" * 1000, b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 50):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(junk)
                connection.settimeout(10)
                assert ended(connection)
        async with grpc.aio.insecure_channel(address) as channel:
            raw = channel.stream_stream("/penstock.committer.Consensus/Operate")
            for _ in range(2):
                call = raw()
                await call.read()
                await call.write(b"\xff\xff\xff not a message")
                assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
            call = pb_grpc.ConsensusStub(channel).Operate()
            await call.write(pb.Requests(requests=[pb.Request(head=pb.HeadRequest(key="k" * 9999))]))
            answers: list[pb.Response] = []
            while not answers:
                answers += (await call.read()).responses
            assert answers[0].err.determinacy == pb.INVALID
            call.cancel()
        assert await client.head("s") == version(0)
        await client.close()

    with persistd(tmp_path, "--listen", "127.0.0.1:0", "--consensus-url", "mem:") as process:
        asyncio.run(main(process.ready()))
        refused = [event["reason"] for event in process.events() if event["event"] == "refused"]
        assert sorted(refused) == ["garbage", "invalid"], "said once per peer"


def test_a_frozen_one_is_noticed_within_two_seconds_and_found_again(tmp_path: Path) -> None:
    async def main(address: str) -> None:
        client = RpcConsensus(address)
        assert await client.compare_and_set("s", version(0)) is CasResult.COMMITTED
        process.signal(SIGSTOP)
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(Indeterminate, match="connection broke"):
            await client.compare_and_set("s", version(1))
        noticed_s = loop.time() - started
        process.signal(SIGCONT)
        async with asyncio.timeout(20):
            assert await client.head("s") in (version(0), version(1))
        await client.close()
        assert noticed_s < 5.0, "the deadline of a call is 10 s: only a watch on the connection is quicker"

    with persistd(tmp_path, "--listen", "127.0.0.1:0", "--consensus-url", "mem:") as process:
        asyncio.run(main(process.ready()))


def test_killing_it_stalls_writes_and_loses_nothing(tmp_path: Path) -> None:
    """Writers go on by themselves; what was acknowledged is there, and each version has one author."""
    arguments = ["--listen", f"unix:{tmp_path}/c", "--consensus-url", f"sqlite:{tmp_path}/c.db"]
    acknowledged: dict[str, int] = {}

    async def advance(client: RpcConsensus, key: str, stop: asyncio.Event) -> None:
        seqno = 0
        while not stop.is_set():
            try:
                result = await client.compare_and_set(key, version(seqno, b"%d" % seqno))
            except Indeterminate:
                head = None
                while head is None and not stop.is_set():
                    try:
                        head = await client.head(key)
                        break
                    except Indeterminate:
                        continue
                seqno = 0 if head is None else head.seqno + 1
                continue
            assert result is CasResult.COMMITTED
            acknowledged[key] = seqno
            seqno += 1

    async def main() -> None:
        client = RpcConsensus(f"unix:{tmp_path}/c")
        stop = asyncio.Event()
        keys = [f"s{number}" for number in range(20)]
        writers = [asyncio.ensure_future(advance(client, key, stop)) for key in keys]
        for _ in range(3):
            with persistd(tmp_path, *arguments) as process:
                process.ready()
                before = dict(acknowledged)
                await until(
                    lambda b=before: len(acknowledged) == 20 and all(acknowledged[k] > b.get(k, -1) for k in keys)
                )
                process.signal(SIGKILL)
                process.wait()
        with persistd(tmp_path, *arguments) as process:
            process.ready()
            before = dict(acknowledged)
            await until(lambda: all(acknowledged[key] > before[key] for key in keys))
            stop.set()
            await asyncio.gather(*writers)
            for key in keys:
                log = await client.scan(key, version(0).seqno)
                assert [v.seqno for v in log] == list(range(len(log)))
                assert log[-1].seqno >= acknowledged[key]
                assert all(int(v.data) == v.seqno for v in log)
            await client.close()

    asyncio.run(main())
