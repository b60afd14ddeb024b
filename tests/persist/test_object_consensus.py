"""Consensus on objects: histories on a store that does its worst, damage, and stores that ignore conditions."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from penstock.persist import CasResult, SeqNo, StoreUnusable, Versioned, object_log
from penstock.persist.object_consensus import ObjectConsensus
from penstock.persist.object_log import (
    Log,
    Segment,
    decode_head,
    encode_head,
    first_log,
    is_garbage,
)
from penstock.persist.object_store import Changed, Tag
from penstock.runtime import Determinate, Indeterminate, seeded
from tests.persist.adverse_objects import AdverseClient, AdverseObjects

PROCESSES = 4
STEPS = 40


class History:
    """What all processes were told, checked as it comes.

    Every attempt to write carries data of its own, so that who wrote a version can be told from its data.
    """

    def __init__(self) -> None:
        self.data: dict[int, bytes] = {}
        self.committed: dict[int, bytes] = {}
        self.refused: set[bytes] = set()
        self.head = -1
        self.floor = 0

    def saw(self, versions: list[Versioned], head_before: int, floor_before: int, *, whole: bool) -> None:
        """A read that began when `head_before` was committed and `floor_before` truncated, and has ended now."""
        seqnos = [version.seqno for version in versions]
        assert seqnos == list(range(seqnos[0], seqnos[0] + len(seqnos))) if seqnos else True, "a gap"
        assert (seqnos[-1] if seqnos else -1) >= head_before, "older than a commit that was acknowledged before"
        assert not seqnos or not whole or seqnos[0] >= floor_before, "a truncated version came back"
        for seqno, data in versions:
            assert self.data.setdefault(seqno, data) == data, f"version {seqno} changed"
            assert data not in self.refused, f"version {seqno} was refused and is there"
            assert self.committed.get(seqno, data) == data, f"version {seqno} is not what was acknowledged"
        if seqnos:
            self.head = max(self.head, seqnos[-1])


async def process(store: ObjectConsensus, history: History, dice: random.Random, name: str) -> None:
    guess = 0
    for step in range(STEPS):
        head_before, floor_before = history.head, history.floor
        try:
            match dice.choice(["append"] * 5 + ["stale", "head", "scan", "scan", "truncate"]):
                case "append" | "stale" as how:
                    # "stale": a writer that slept and knows nothing of what went on meanwhile
                    seqno = guess if how == "append" else dice.randrange(guess + 1)
                    data = f"{name} {step}".encode() * dice.choice([1, 1, 8])
                    try:
                        result = await store.compare_and_set("k", Versioned(SeqNo(seqno), data))
                    except Determinate:
                        history.refused.add(data)
                        raise
                    if result is CasResult.COMMITTED:
                        assert seqno not in history.committed, f"version {seqno} was committed twice"
                        history.committed[seqno] = data
                        history.saw([Versioned(SeqNo(seqno), data)], -1, 0, whole=False)
                        guess = seqno + 1
                    else:
                        history.refused.add(data)
                        guess = max(guess, history.head + 1)
                case "head":
                    head = await store.head("k")
                    history.saw([head] if head else [], head_before, 0, whole=False)
                    guess = head.seqno + 1 if head else 0
                case "scan":
                    history.saw(await store.scan("k", SeqNo(0)), head_before, floor_before, whole=True)
                case "truncate":
                    seqno = max(0, head_before - dice.randrange(12))
                    await store.truncate("k", SeqNo(seqno))
                    history.floor = max(history.floor, seqno)
        except StoreUnusable:
            raise  # damage
        except (Indeterminate, Determinate):
            await asyncio.sleep(0)


def play(seed: int, lost: float) -> History:
    async def main() -> History:
        dice = random.Random(seed)
        shared = AdverseObjects(dice, lost=lost)
        history = History()
        stores = [ObjectConsensus(AdverseClient(shared)) for _ in range(PROCESSES)]
        await asyncio.gather(*(process(store, history, dice, f"p{n}") for n, store in enumerate(stores)))
        await shared.settle()
        last = ObjectConsensus(AdverseClient(shared))
        history.saw(await last.scan("k", SeqNo(0)), history.head, history.floor, whole=True)
        head = await last.head("k")
        if head is not None:
            for _ in range(2):  # what failed writers left is gone after the next truncation that drops a segment
                for seqno in range(head.seqno + 1, head.seqno + 8):
                    await last.compare_and_set("k", Versioned(SeqNo(seqno), bytes(40)))
                head = await last.head("k")
                assert head is not None
                await last.truncate("k", head.seqno)
            left = [name for name in shared.objects if name.startswith("consensus/segments/")]
            assert len(left) <= 2, left
        return history

    with seeded(random.Random(seed)):
        return asyncio.run(main())


@pytest.fixture
def small_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments all the time."""
    monkeypatch.setattr(object_log, "HEAD_BYTES_MAX", 80)


@pytest.mark.usefixtures("small_heads")
@pytest.mark.parametrize("lost", [0.0, 0.1, 0.3])
def test_histories_on_an_adverse_store(lost: float) -> None:
    committed = sum(len(play(seed, lost).committed) for seed in range(60))
    assert committed > 600, "the histories must get somewhere"


@pytest.mark.usefixtures("small_heads")
@pytest.mark.parametrize(
    "mutation",
    ["no condition", "collects what may yet be referred to", "refers before it writes"],
)
def test_the_histories_notice_a_wrong_protocol(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mutation == "no condition":
        real = AdverseClient.put_if

        async def unconditional(self: AdverseClient, name: str, data: bytes, expected: Tag | None) -> Tag:
            present = await self.get(name)
            return await real(self, name, data, present[1] if present else None)

        async def trusting(self: ObjectConsensus) -> None:
            """Not asking the store, which would tell."""

        monkeypatch.setattr(AdverseClient, "put_if", unconditional)
        monkeypatch.setattr(ObjectConsensus, "_verify", trusting)
    elif mutation == "collects what may yet be referred to":
        everything: Callable[[str, Log], bool] = lambda name, log: all(name != s.name for s in log.segments)  # noqa: E731
        monkeypatch.setattr("penstock.persist.object_consensus.is_garbage", everything)
    else:

        async def later(self: ObjectConsensus, key: str, known: object, data: bytes) -> bool:
            log = known.log  # type: ignore[attr-defined]
            spilled, rest = log.spill("0" * 32)
            if not await self._replace(key, known.tag, rest.append(data)):  # type: ignore[attr-defined]
                return False
            await self._client.put(f"consensus/segments/{key}/{spilled.name}", object_log.encode_segment(log.versions))
            return True

        whole = ObjectConsensus._append

        async def wrong(self: ObjectConsensus, key: str, known: object, data: bytes) -> bool:
            if known is not None and known.log.is_full(data):  # type: ignore[attr-defined]
                return await later(self, key, known, data)
            return await whole(self, key, known, data)  # type: ignore[arg-type]

        monkeypatch.setattr(ObjectConsensus, "_append", wrong)
    noticed = 0
    for seed in range(60):
        try:
            play(seed, 0.1)
        except (AssertionError, StoreUnusable):
            noticed += 1
    assert noticed, "no history was wrong"


def test_an_append_costs_one_request_and_a_read_of_what_is_known_one() -> None:
    async def main() -> None:
        requests: list[str] = []

        class Counting(AdverseClient):
            async def get(self, name: str, *, known: Tag | None = None) -> tuple[bytes, Tag] | None:
                requests.append("get")
                return await super().get(name, known=known)

            async def put_if(self, name: str, data: bytes, expected: Tag | None) -> Tag:
                requests.append("put")
                return await super().put_if(name, data, expected)

        store = ObjectConsensus(Counting(AdverseObjects(random.Random(1), lost=0)))
        await store.compare_and_set("k", Versioned(SeqNo(0), b""))
        requests.clear()
        for seqno in range(1, 5):
            assert await store.compare_and_set("k", Versioned(SeqNo(seqno), b"")) is CasResult.COMMITTED
        assert requests == ["put"] * 4
        requests.clear()
        assert await store.compare_and_set("k", Versioned(SeqNo(2), b"")) is CasResult.MISMATCH
        assert requests == [], "what is known to be behind asks nobody"
        assert await store.truncate("k", SeqNo(3)) == 3
        assert requests == ["put"]
        await store.head("k")
        assert requests == ["put", "get"]

    asyncio.run(main())


@pytest.mark.parametrize("obeys", ["nothing", "only creation"])
def test_a_store_that_ignores_conditions_is_refused_before_anything_is_written(obeys: str) -> None:
    async def main() -> None:
        shared = AdverseObjects(random.Random(1), lost=0)

        class Disobedient(AdverseClient):
            async def put_if(self, name: str, data: bytes, expected: Tag | None) -> Tag:
                if obeys == "only creation" and expected is None:
                    return await super().put_if(name, data, None)
                await self.put(name, data)
                found = await self.get(name)
                assert found is not None
                return found[1]

        store = ObjectConsensus(Disobedient(shared))
        with pytest.raises(StoreUnusable, match="ignores conditions"):
            await store.compare_and_set("k", Versioned(SeqNo(0), b"x"))
        assert not [name for name in shared.objects if "heads" in name]

    asyncio.run(main())


@pytest.mark.usefixtures("small_heads")
def test_damage_is_reported_by_name_and_never_read_as_data() -> None:
    async def main() -> None:
        shared = AdverseObjects(random.Random(1), lost=0)
        store = ObjectConsensus(AdverseClient(shared))
        for seqno in range(20):
            await store.compare_and_set("k", Versioned(SeqNo(seqno), b"%02d" % seqno * 8))
        whole = dict(shared.objects)
        segments = sorted(name for name in whole if "segments" in name)
        assert len(segments) > 2
        for name in (segments[0], "consensus/heads/k"):
            for damaged in (b"", b"PSL1", whole[name][:-1], whole[name][:20] + b"?" + whole[name][21:]):
                shared.objects[name] = damaged
                with pytest.raises(StoreUnusable, match=r"damaged.*restore it from a backup"):
                    await ObjectConsensus(AdverseClient(shared)).scan("k", SeqNo(0))
            shared.objects[name] = whole[name]
        del shared.objects[segments[1]]
        with pytest.raises(StoreUnusable, match="is missing"):
            await store.scan("k", SeqNo(0))
        assert await store.head("k") == (19, b"19" * 8)
        del shared.objects["consensus/heads/k"]
        with pytest.raises(StoreUnusable, match="has disappeared"):
            await store.head("k")

    asyncio.run(main())


def test_the_cache_of_heads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.persist.object_consensus._CACHE_BYTES_MAX", 1000)

    async def main() -> None:
        store = ObjectConsensus(AdverseClient(AdverseObjects(random.Random(1), lost=0)))
        for number in range(50):
            await store.compare_and_set(f"k{number}", Versioned(SeqNo(0), bytes(100)))
        assert len(store._known) < 10
        assert store._known_bytes == sum(known.bytes for known in store._known.values()) <= 1000
        assert not store._locks
        for number in range(50):
            assert await store.compare_and_set(f"k{number}", Versioned(SeqNo(1), b"")) is CasResult.COMMITTED

    asyncio.run(main())


def test_a_writer_gives_up_when_others_always_win() -> None:
    async def main() -> None:
        class Losing(AdverseClient):
            async def put_if(self, name: str, data: bytes, expected: Tag | None) -> Tag:
                if "heads" in name and expected is not None:
                    raise Changed(name)
                return await super().put_if(name, data, expected)

        store = ObjectConsensus(Losing(AdverseObjects(random.Random(1), lost=0)))
        assert await store.compare_and_set("k", Versioned(SeqNo(0), b"")) is CasResult.COMMITTED
        with pytest.raises(Determinate, match="others were first"):
            await store.compare_and_set("k", Versioned(SeqNo(1), b""))

    asyncio.run(main())


def test_garbage_that_cannot_be_deleted_does_not_fail_the_truncation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_log, "HEAD_BYTES_MAX", 120)

    async def main() -> None:
        class Keeping(AdverseClient):
            async def delete(self, name: str) -> None:
                if "segments" in name:
                    raise Indeterminate("not now")
                await super().delete(name)

        shared = AdverseObjects(random.Random(1), lost=0)
        store = ObjectConsensus(Keeping(shared))
        for seqno in range(20):
            await store.compare_and_set("k", Versioned(SeqNo(seqno), bytes(30)))
        assert await store.truncate("k", SeqNo(15)) == 15
        assert [version.seqno for version in await store.scan("k", SeqNo(0))] == [15, 16, 17, 18, 19]

    asyncio.run(main())


def test_log_is_a_value() -> None:
    log = first_log(b"0")
    for number in range(1, 4):
        log = log.append(b"%d" % number)
    segment, rest = log.spill("a" * 32)
    log = rest.append(b"4").append(b"5")
    assert segment == Segment(0, 3, "a" * 32)
    assert log.head == (5, b"5")
    assert log.between(0, 100) == [(4, b"4"), (5, b"5")]
    assert log.between(5, 6) == [(5, b"5")]
    assert decode_head(encode_head(log), "it") == log
    half = log.truncate(2)
    assert half.segments == [segment], "a segment that is half alive stays"
    assert not is_garbage(segment.name, half)
    assert is_garbage(f"{0:013}-{1:013}-{'b' * 32}", half), "written from a head before the truncation"
    assert not is_garbage(f"{4:013}-{5:013}-{'b' * 32}", half), "may be referred to by the next write"
    assert not is_garbage("something else", half)
    gone = half.truncate(5)
    assert (gone.segments, gone.first, gone.versions, gone.floor) == ([], 5, [b"5"], 5)
    assert is_garbage(segment.name, gone)
    with pytest.raises(AssertionError):
        gone.truncate(6)
