"""Coalescing of compare-and-sets: what shares a batch, what each member gets, what is bounded."""

import asyncio
from collections import Counter

import pytest

from penstock.committer import InProcessConsensus, ShardCache, metrics
from penstock.committer.coalesce import Coalescer
from penstock.persist import CasResult, StoreUnusable
from penstock.runtime import Determinate, Indeterminate, SystemClock
from tests.committer.batching import BatchingMemConsensus, conflict, version

COMMITTED, MISMATCH = CasResult.COMMITTED, CasResult.MISMATCH


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_what_gathers_in_one_turn_shares_one_batch_and_each_has_its_result() -> None:
    async def main() -> None:
        store = BatchingMemConsensus()
        committer = InProcessConsensus(store)
        await store.compare_and_set("b", version(0))
        store.batches.clear()
        results = await asyncio.gather(*(committer.compare_and_set(key, version(0)) for key in "abc"))
        assert results == [COMMITTED, MISMATCH, COMMITTED], "one mismatch fails no neighbour"
        assert store.batches == [["a", "b", "c"]]
        await committer.close()

    asyncio.run(main())


def test_a_lone_change_goes_at_once_and_the_backlog_makes_the_next_batch() -> None:
    async def main() -> None:
        store = BatchingMemConsensus()
        committer = InProcessConsensus(store, batches_max=1)
        store.gate.clear()
        first = asyncio.ensure_future(committer.compare_and_set("first", version(0)))
        await settle()
        assert store.batches == [["first"]]
        rest = [asyncio.ensure_future(committer.compare_and_set(f"k{i}", version(0))) for i in range(100)]
        await settle()
        assert store.batches == [["first"]], "the bound on batches holds"
        store.gate.set()
        assert set(await asyncio.gather(first, *rest)) == {COMMITTED}
        assert [len(batch) for batch in store.batches] == [1, 64, 36]
        await committer.close()

    asyncio.run(main())


@pytest.mark.parametrize(("processes", "gathers"), [(0, 1), (1, 2), (3, 6), (100, 16)])
def test_the_second_batch_waits_for_as_many_as_its_answers_need_messages(processes: int, gathers: int) -> None:
    async def main() -> None:
        store = BatchingMemConsensus()
        committer = InProcessConsensus(store)
        committer.called_by(processes)
        store.gate.clear()
        calls = [asyncio.ensure_future(committer.compare_and_set("first", version(0)))]
        await settle()
        for number in range(gathers):
            calls.append(asyncio.ensure_future(committer.compare_and_set(f"k{number}", version(0))))
            await settle()
            assert store.batches == [["first"]]
        calls.append(asyncio.ensure_future(committer.compare_and_set("last", version(0))))
        await settle()
        assert [len(batch) for batch in store.batches] == [1, gathers + 1]
        store.gate.set()
        assert set(await asyncio.gather(*calls)) == {COMMITTED}
        await committer.close()

    asyncio.run(main())


def test_batches_in_flight_are_bounded() -> None:
    async def main() -> None:
        store = BatchingMemConsensus()
        committer = InProcessConsensus(store)
        store.gate.clear()
        calls = [asyncio.ensure_future(committer.compare_and_set(f"k{i}", version(0))) for i in range(64 * 20)]
        await settle()
        assert store.in_flight == 16
        store.gate.set()
        assert set(await asyncio.gather(*calls)) == {COMMITTED}
        assert store.in_flight_max == 16
        await committer.close()

    asyncio.run(main())


def test_changes_of_one_shard_never_meet_and_the_one_left_behind_fails_fast() -> None:
    async def main() -> None:
        store = BatchingMemConsensus()
        committer = InProcessConsensus(store)
        store.gate.clear()
        racing = [asyncio.ensure_future(committer.compare_and_set("s", version(0, b"%d" % i))) for i in range(5)]
        following = asyncio.ensure_future(committer.compare_and_set("s", version(1)))
        await settle()
        assert store.batches == [["s"]]
        store.gate.set()
        assert await asyncio.gather(*racing, following) == [COMMITTED, *[MISMATCH] * 4, COMMITTED]
        assert store.batches == [["s"], ["s"]], "those known to be behind never reached the store"
        await committer.close()

    asyncio.run(main())


@pytest.mark.parametrize("size", [2, 7, 64])
def test_a_batch_that_cannot_be_serialized_is_halved_until_it_can(size: int) -> None:
    async def main() -> None:
        store = BatchingMemConsensus()
        committer = InProcessConsensus(store)
        store.fail_batch = {n: conflict() for n in range(3, 65)}
        calls = [committer.compare_and_set(f"k{i}", version(0)) for i in range(size)]
        assert set(await asyncio.gather(*calls)) == {COMMITTED}
        assert max(Counter(key for batch in store.batches if len(batch) < 3 for key in batch).values()) == 1
        store.fail_batch[1] = store.fail_batch[2] = conflict()
        with pytest.raises(Determinate, match="cannot write") as caught:
            await committer.compare_and_set("alone", version(0))
        assert not isinstance(caught.value, StoreUnusable)
        await committer.close()

    asyncio.run(main())


def test_an_unknown_outcome_of_a_batch_is_every_members() -> None:
    async def main() -> None:
        store = BatchingMemConsensus()
        committer = InProcessConsensus(store)
        store.raise_after_effect = Indeterminate("the connection broke")
        outcomes = await asyncio.gather(
            *(committer.compare_and_set(key, version(0)) for key in "abc"), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [Indeterminate] * 3
        assert len({id(outcome) for outcome in outcomes}) == 3
        assert "setting" in str(outcomes[0]) or "cannot set a" in str(outcomes[0])
        assert len(store.batches) == 1, "what may have happened is not repeated"
        store.raise_after_effect = None
        assert await committer.compare_and_set("a", version(1)) is COMMITTED, "it had happened"
        await committer.close()

    asyncio.run(main())


def test_a_refusal_of_the_store_is_told_at_once_and_a_bug_is_indeterminate() -> None:
    async def main() -> None:
        store = BatchingMemConsensus()
        committer = InProcessConsensus(store)
        store.fail_batch[2] = StoreUnusable("read-only")
        outcomes = await asyncio.gather(
            *(committer.compare_and_set(key, version(0)) for key in "ab"), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [StoreUnusable] * 2
        assert len(store.batches) == 1
        store.fail_batch[2] = KeyError("bug")  # type: ignore[assignment]
        outcomes = await asyncio.gather(
            *(committer.compare_and_set(key, version(0)) for key in "ab"), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [Indeterminate] * 2
        store.fail_batch.clear()
        store.fail_member["a"] = Determinate("only this one")
        outcomes = await asyncio.gather(
            *(committer.compare_and_set(key, version(0)) for key in "ab"), return_exceptions=True
        )
        assert type(outcomes[0]) is Determinate
        assert outcomes[1] is COMMITTED
        await committer.close()

    asyncio.run(main())


def test_a_full_queue_makes_callers_wait_in_order_and_loses_nobody() -> None:
    async def main() -> None:
        store = BatchingMemConsensus()
        coalescer = Coalescer(store, ShardCache(), lambda *_: None, SystemClock(), backlog_max=10)
        store.gate.clear()
        waits = metrics.QUEUE_WAITS._value.get()
        calls = [asyncio.ensure_future(coalescer.compare_and_set(f"k{i}", version(0))) for i in range(50)]
        await settle()
        assert sum(map(len, store.batches)) == 10
        assert metrics.QUEUE_WAITS._value.get() >= waits + 40
        for call in calls[10:15]:
            call.cancel()
        await settle()
        store.gate.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert outcomes[:10] == [COMMITTED] * 10
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[10:15])
        assert outcomes[15:] == [COMMITTED] * 35
        assert sum(map(len, store.batches)) == 45
        await coalescer.close()

    asyncio.run(main())


def test_a_change_withdrawn_before_it_left_does_not_happen() -> None:
    async def main() -> None:
        store = BatchingMemConsensus()
        committer = InProcessConsensus(store, batches_max=1)
        store.gate.clear()
        first = asyncio.ensure_future(committer.compare_and_set("first", version(0)))
        await settle()
        cancelled = asyncio.ensure_future(committer.compare_and_set("s", version(0, b"no")))
        behind_it = asyncio.ensure_future(committer.compare_and_set("s", version(0, b"yes")))
        await settle()
        cancelled.cancel()
        store.gate.set()
        assert await asyncio.gather(first, behind_it) == [COMMITTED, COMMITTED]
        assert await store.head("s") == version(0, b"yes")
        await committer.close()

    asyncio.run(main())


def test_closing_refuses_what_waits_and_finishes_what_has_left() -> None:
    async def main() -> None:
        store = BatchingMemConsensus()
        committer = InProcessConsensus(store, batches_max=1)
        store.gate.clear()
        gone = asyncio.ensure_future(committer.compare_and_set("gone", version(0)))
        await settle()
        waiting = [asyncio.ensure_future(committer.compare_and_set(key, version(0))) for key in ("gone", "b", "b")]
        await settle()
        closing = asyncio.ensure_future(committer.close())
        await settle()
        assert not closing.done()
        store.gate.set()
        assert await gone is COMMITTED
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert type(outcome) is Determinate
        await closing
        assert await store.head("b") is None
        with pytest.raises(Determinate):
            await committer.compare_and_set("late", version(0))

    asyncio.run(main())


def test_closing_that_is_given_up_leaves_the_outcome_unknown() -> None:
    async def main() -> None:
        store = BatchingMemConsensus()
        committer = InProcessConsensus(store)
        store.gate.clear()
        gone = asyncio.ensure_future(committer.compare_and_set("gone", version(0)))
        await settle()
        closing = asyncio.ensure_future(committer.close())
        await settle()
        closing.cancel()
        with pytest.raises(Indeterminate):
            await gone

    asyncio.run(main())


def test_a_store_that_went_back_is_believed() -> None:
    """Reset or restored: the cache must not go on to refuse what the store would take."""

    async def main() -> None:
        store = BatchingMemConsensus()
        committer = InProcessConsensus(store)
        for seqno in range(3):
            await committer.compare_and_set("s", version(seqno))
        store._logs.clear()
        assert await committer.compare_and_set("s", version(0)) is MISMATCH
        assert await committer.head("s") is None
        assert await committer.compare_and_set("s", version(0)) is COMMITTED
        await committer.close()

    asyncio.run(main())
