"""What the answers of an object store mean: which failures surely changed nothing, and which may have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from penstock.persist import (
    Blob,
    CasResult,
    Consensus,
    SeqNo,
    StoreFull,
    StoreRefused,
    StoreUnusable,
    Versioned,
    open_blob,
    open_consensus,
)
from penstock.runtime import Indeterminate


class Scripted:
    """An S3 as far as these tests go. `answers` maps a method to what it is answered instead, once per entry."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.answers: dict[str, list[tuple[str, bytes]]] = {}
        self.requests: list[str] = []
        self.applies = False
        """Whether a request that gets a scripted answer is carried out all the same."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, target, _ = head.split(" ", 2)
                headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests.append(method)
                scripted = self.answers.get(method)
                answer = scripted.pop(0) if scripted else None
                if answer is None or self.applies:
                    done = self._carry_out(method, target.partition("?")[0], headers, body)
                    answer = answer or done
                status, data = answer
                etag = f'ETag: "{hash(data)}"\r\n' if method == "GET" else f'ETag: "{hash(body)}"\r\n'
                date = "Last-Modified: Fri, 20 Nov 2026 10:00:00 GMT\r\n"
                length = len(data) + (10 if status.endswith("cut") else 0)
                writer.write(f"HTTP/1.1 {status}\r\n{etag}{date}Content-Length: {length}\r\n\r\n".encode() + data)
                if status.endswith("cut"):
                    break
                await writer.drain()
        writer.close()

    def _carry_out(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[str, bytes]:
        present = self.objects.get(target)
        if method in ("GET", "HEAD"):
            return ("404 Not Found", b"") if present is None else ("200 OK", present)
        if method == "PUT":
            tag = None if present is None else f'"{hash(present)}"'
            if ("if-none-match" in headers and present is not None) or headers.get("if-match", tag) != tag:
                return "412 Precondition Failed", b""
            self.objects[target] = body
        return "200 OK", b""


@asynccontextmanager
async def scripted(settings: str = "") -> AsyncIterator[tuple[Scripted, Blob, Consensus]]:
    store = Scripted()
    server = await asyncio.start_server(store.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"s3://b/p?endpoint=http://127.0.0.1:{port}&region=r&access_key_id=i&secret_access_key=hunter2{settings}"
    blob, consensus = open_blob(url), open_consensus(url)
    try:
        yield store, blob, consensus
    finally:
        await blob.close()
        await consensus.close()
        server.close()


def version(seqno: int) -> Versioned:
    return Versioned(SeqNo(seqno), b"data")


def test_a_conditional_write_goes_out_once() -> None:
    """A repetition would meet what the first attempt wrote, and take it for somebody else's."""

    async def main() -> None:
        async with scripted() as (store, _, consensus):
            assert await consensus.compare_and_set("k", version(0)) is CasResult.COMMITTED
            store.requests.clear()
            store.applies = True
            store.answers["PUT"] = [("500 Internal Server Error", b"")]
            with pytest.raises(Indeterminate):
                await consensus.compare_and_set("k", version(1))
            assert store.requests == ["PUT"]
            assert await consensus.head("k") == version(1), "it did happen"
            assert await consensus.compare_and_set("k", version(2)) is CasResult.COMMITTED

    asyncio.run(main())


def test_a_blob_is_written_again_until_it_is_there() -> None:
    async def main() -> None:
        async with scripted() as (store, blob, _):
            store.answers["PUT"] = [("503 Slow Down", b"")] * 2
            await blob.set("s/a", b"x")
            assert store.requests == ["PUT"] * 3
            store.answers["PUT"] = [("500 Internal Server Error", b"")] * 9
            with pytest.raises(Indeterminate, match="500"):
                await blob.set("s/a", b"y")
            assert len(store.requests) < 9, "not for ever"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "body", "error", "advice"),
    [
        ("507 Insufficient Storage", b"", StoreFull, "make room"),
        ("403 Forbidden", b"<Error><Code>QuotaExceeded</Code></Error>", StoreFull, "make room"),
        ("403 Forbidden", b"<Error><Code>SignatureDoesNotMatch</Code></Error>", StoreRefused, "credentials"),
        ("401 Unauthorized", b"", StoreRefused, "credentials"),
        ("404 Not Found", b"<Error><Code>NoSuchBucket</Code></Error>", StoreUnusable, "create the bucket"),
        ("501 Not Implemented", b"<Error><Code>NotImplemented</Code></Error>", StoreUnusable, "does not offer"),
        ("500 Internal Server Error", b"", Indeterminate, "500"),
        ("429 Too Many Requests", b"", Indeterminate, "429"),
    ],
)
def test_answers_are_classified(answer: str, body: bytes, error: type[Exception], advice: str) -> None:
    async def main() -> None:
        async with scripted() as (store, blob, consensus):
            await consensus.compare_and_set("k", version(0))
            store.answers["PUT"] = [(answer, body)] * 6
            with pytest.raises(error, match=advice) as caught:
                await blob.set("s/a", b"x")
            assert "hunter2" not in str(caught.value)
            store.answers = {"PUT": [(answer, body)], "GET": [(answer, body)]}
            with pytest.raises(error, match=advice):
                await consensus.compare_and_set("k", version(1))
            store.answers.clear()
            assert await consensus.compare_and_set("k", version(1)) is CasResult.COMMITTED

    asyncio.run(main())


def test_an_object_that_arrives_in_part_is_never_taken_for_whole() -> None:
    async def main() -> None:
        async with scripted() as (store, blob, _):
            await blob.set("s/a", b"whole")
            store.answers["GET"] = [("200 OK cut", b"who")] * 9
            with pytest.raises(Indeterminate):
                await blob.get("s/a")
            store.answers.clear()
            assert await blob.get("s/a") == b"whole"

    asyncio.run(main())


def test_no_more_requests_at_once_than_allowed() -> None:
    async def main() -> None:
        async with scripted("&requests_max=2&op_timeout=200ms") as (_, blob, _consensus):
            under_way = most = 0
            client = blob._client  # type: ignore[attr-defined]
            acquire = client._requests.acquire
            release = client._requests.release

            async def counting() -> bool:
                nonlocal under_way, most
                await acquire()
                under_way += 1
                most = max(most, under_way)
                return True

            def done() -> None:
                nonlocal under_way
                under_way -= 1
                release()

            client._requests.acquire, client._requests.release = counting, done
            await asyncio.gather(*(blob.set(f"s/{number}", b"x") for number in range(20)))
            assert most == 2

    asyncio.run(main())
