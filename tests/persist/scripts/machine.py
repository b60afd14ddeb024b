"""Commands of scripts against a shard on stores in memory, through the production code.

Everything that is appended is remembered; each snapshot is also compared with it. Keys of blobs are random, so
answers name them by their owner and number.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from penstock.persist import (
    Batch,
    CasResult,
    Fenced,
    Listen,
    MemBlob,
    MemConsensus,
    Mismatch,
    PersistClient,
    PersistConfig,
    ReadHandle,
    SeqNo,
    SinceHandle,
    Versioned,
    WriteHandle,
    commands,
    new_shard_id,
)
from penstock.persist import compact as compacting
from penstock.persist.collect import collect_garbage, collectable, roll_up
from penstock.persist.inspect import changes
from penstock.persist.state import HollowPart, LinkedBatch, Part, decode_diff
from penstock.runtime import DONE, Frontier, Indeterminate, PenstockError, Timestamp, Updates, VirtualClock
from tests.persist.scripts.script import Command
from tests.persist.shards import SCHEMA, Change, expected_at, tally, updates

_SHOWN = 12


class Faulty(MemConsensus):
    """The next compare-and-set takes effect, or does not, and its answer is lost."""

    fate = ""

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        fate, self.fate = self.fate, ""
        if fate == "lost-answer":
            await super().compare_and_set(key, new)
        if fate:
            raise Indeterminate(fate)
        return await super().compare_and_set(key, new)


class Machine:
    """One shard, as many handles as a script names."""

    def __init__(self) -> None:
        self.blob, self.consensus, self.clock = MemBlob(), Faulty(), VirtualClock(1_000_000)
        self.config = PersistConfig(
            maintenance=False, inline_bytes=0, cache_bytes=0, hold_versions=1, reader_lease_ms=10_000
        )
        self.client = self._client()
        self.id = new_shard_id()
        self.writers: dict[str, WriteHandle] = {}
        self.readers: dict[str, ReadHandle] = {}
        self.sinces: dict[str, SinceHandle] = {}
        self.batches: dict[str, Batch] = {}
        self.changes: dict[str, list[Change]] = {}
        self.listens: dict[str, Listen] = {}
        self.outputs: dict[str, tuple[tuple[int, ...], Frontier, tuple[Part, ...]]] = {}
        self.appended: list[Change] = []
        self.rollups: dict[str, int] = {}

    def handlers(self) -> dict[str, Callable[[Command], Awaitable[str]]]:
        found = {}
        for name in dir(self):
            if name.startswith("do_"):
                found[name[3:].replace("_", "-")] = self._telling(getattr(self, name))
        return found

    @staticmethod
    def _telling(handler: Callable[[Command], Awaitable[str]]) -> Callable[[Command], Awaitable[str]]:
        async def call(command: Command) -> str:
            try:
                async with asyncio.timeout(20):
                    return await handler(command)
            except PenstockError as error:
                return f"error: {type(error).__name__}"

        return call

    def _client(self) -> PersistClient:
        return PersistClient(self.blob, self.consensus, clock=self.clock, config=self.config)

    async def close(self) -> None:
        await self.client.close()

    async def _shard(self) -> Any:
        return await self.client._open(self.id)

    async def _writer(self, name: str) -> WriteHandle:
        if name not in self.writers:
            self.writers[name] = await self.client.open_writer(self.id, SCHEMA, purpose=name)
        return self.writers[name]

    # Settings and time

    async def do_config(self, command: Command) -> str:
        """Change settings; the process is as if started anew."""
        changed = {name: int(value) for name, value in command.arguments.items()}
        self.config = dataclasses.replace(self.config, **changed)  # type: ignore[arg-type]
        return await self.do_restart(command)

    async def do_restart(self, _: Command) -> str:
        await self.client.close()
        self.client = self._client()
        for handles in (self.writers, self.readers, self.sinces, self.listens):
            handles.clear()
        return ""

    async def do_advance_clock(self, command: Command) -> str:
        self.clock.advance(command.number("ms") / 1000)
        return ""

    # Writing

    async def do_write_batch(self, command: Command) -> str:
        """Input: lines of "key time diff"."""
        changed = [_change(line) for line in command.lines]
        writer = await self._writer(command.text("writer", "w0"))
        lower, upper = Frontier(command.number("lower")), _frontier(command.text("upper"))
        name = command.text("out")
        self.batches[name] = await writer.batch(updates(changed), lower, upper)
        self.changes[name] = changed
        return _parts(self.batches[name].parts)

    async def do_fetch_batch(self, command: Command) -> str:
        parts = await self._fetch(self.batches[command.text("batch")].parts)
        return _rows(parts)

    async def do_delete_batch(self, command: Command) -> str:
        await (await self._writer("w0")).delete_batch(self.batches[command.text("batch")])
        return ""

    async def do_compare_and_append(self, command: Command) -> str:
        """`fault`: lost-answer or not-done; the first attempt meets it."""
        writer = await self._writer(command.text("writer", "w0"))
        names = command.names("batch")
        expected, new = Frontier(command.number("expect")), _frontier(command.text("new"))
        self.consensus.fate = command.text("fault", "none").replace("none", "")
        appending = asyncio.ensure_future(
            writer.compare_and_append_batches([self.batches[name] for name in names], expected, new)
        )
        await self._until(appending)
        result = await appending
        if isinstance(result, Mismatch):
            return f"mismatch: the upper is {_time(result.current_upper)}"
        self.appended += [change for name in names for change in self.changes[name]]
        return f"v{self.client._shards[self.id].state.seqno} upper {_time(writer.upper)}"

    async def _until(self, task: asyncio.Future[Any]) -> None:
        while not task.done():
            self.clock.advance(0.01)
            await asyncio.sleep(0)

    async def do_expire_writer(self, command: Command) -> str:
        await self.writers.pop(command.text("writer")).expire()
        return ""

    # Reading

    async def do_snapshot(self, command: Command) -> str:
        reader = await self.client.open_reader(self.id, SCHEMA, purpose="snapshot")
        try:
            as_of = command.number("as_of")
            if reader.since <= as_of >= reader.upper:
                return f"waits: the upper is {_time(reader.upper)}"
            parts = [part async for part in reader.snapshot(Timestamp(as_of))]
            assert tally(parts) == expected_at(self.appended, as_of), "not what was appended"
            return _rows(parts)
        finally:
            await reader.expire()

    async def do_register_reader(self, command: Command) -> str:
        name = command.text("reader")
        reader = self.readers[name] = await self.client.open_reader(self.id, SCHEMA, purpose=name)
        return f"since {_time(reader.since)}"

    async def do_register_listen(self, command: Command) -> str:
        name = command.text("out")
        reader = await self.client.open_reader(self.id, SCHEMA, purpose=name)
        self.readers[name] = reader
        self.listens[name] = await reader.listen(Timestamp(command.number("as_of")))
        return ""

    async def do_listen(self, command: Command) -> str:
        """Everything up to `upper`, in order of time."""
        listen = self.listens[command.text("listen")]
        parts: list[Updates] = []
        upper = _frontier(command.text("upper"))
        while listen.frontier < upper:
            event = await anext(listen)
            parts += event.updates
        return f"{_rows(parts)}\nprogress {_time(listen.frontier)}"

    async def do_downgrade_since(self, command: Command) -> str:
        reader = self.readers[command.text("reader")]
        await reader.downgrade_since(_frontier(command.text("since")))
        return f"{_time(reader.since)}, shard {_time((await self._state()).since)}"

    async def do_expire_reader(self, command: Command) -> str:
        await self.readers.pop(command.text("reader")).expire()
        return await self.do_shard_desc(command)

    async def do_heartbeat(self, command: Command) -> str:
        await self.readers[command.text("reader")].lease.renew()
        return ""

    async def do_lose_reader(self, command: Command) -> str:
        """Its process hangs: it renews nothing any more."""
        reader = self.readers[command.text("reader")]
        self.client._shards[self.id].readers.pop(reader.reader_id)
        return ""

    async def do_register_critical(self, command: Command) -> str:
        name = command.text("reader")
        handle = await self.client.open_since(self.id, name, purpose=name, opaque=command.number("opaque", 0))
        self.sinces[name] = handle
        return f"since {_time(handle.since)} opaque {handle.opaque}"

    async def do_compare_and_downgrade_since(self, command: Command) -> str:
        handle = self.sinces[command.text("reader")]
        result = await handle.compare_and_downgrade_since(
            command.number("expect"), command.number("new"), _frontier(command.text("since"))
        )
        if isinstance(result, Fenced):
            return f"fenced: opaque {result.opaque} since {_time(result.since)}"
        return f"since {_time(handle.since)} opaque {handle.opaque}, shard {_time((await self._state()).since)}"

    # What is there

    async def _state(self) -> Any:
        return (await self._shard()).state

    async def do_shard_desc(self, _: Command) -> str:
        state = await self._state()
        return f"since {_time(state.since)} upper {_time(state.upper)}"

    async def do_batches(self, _: Command) -> str:
        state = await self._state()
        lines = [
            f"[{batch.lower},{_time(state.batch_upper(index))}) since {_time(batch.since)}: {_parts(batch.parts)}"
            for index, batch in enumerate(state.batches)
        ]
        return "\n".join(lines) or "none"

    async def do_readers(self, _: Command) -> str:
        state = await self._state()
        lines = [f"{one.purpose} since {_time(one.since)} hold v{one.hold}" for one in state.readers.values()]
        lines += [f"{one.purpose} since {_time(one.since)} opaque {one.opaque}" for one in state.criticals.values()]
        return "\n".join(sorted(lines)) or "none"

    async def do_consensus_scan(self, _: Command) -> str:
        versions = await self.consensus.scan(self.id, SeqNo(0))
        lines = [f"v{version.seqno} {'; '.join(self._changes(version))}" for version in versions]
        left_out = len(lines) - _SHOWN
        return "\n".join([f"({left_out} more)", *lines[-_SHOWN:]] if left_out > 0 else lines)

    def _changes(self, version: Versioned) -> list[str]:
        told = changes(decode_diff(self.id, version.data))
        return [one for one in told if not one.startswith(("reader", "writer"))] or ["handles"]

    async def do_consensus_truncate(self, command: Command) -> str:
        return f"{await self.consensus.truncate(self.id, SeqNo(command.number('to')))} removed"

    async def do_blobs(self, _: Command) -> str:
        """Numbers of blobs by their owner, and how many the newest version does not refer to."""
        keys = {key.partition("/")[2] for key, _ in await self.blob.list_prefix(f"{self.id}/")}
        counts: dict[str, int] = {}
        for key in keys:
            owner = {"w": "written", "c": "compacted", "v": "rollups"}[key[0]]
            counts[owner] = counts.get(owner, 0) + 1
        told = ", ".join(f"{counts[owner]} {owner}" for owner in sorted(counts)) or "none"
        return f"{told}; {len(keys - (await self._state()).keys())} unreferenced"

    # Upkeep

    async def do_compact(self, command: Command) -> str:
        """Merge the batches with the given positions. `out`: keep the result instead of applying it."""
        shard = await self._shard()
        positions = [int(one) for one in command.names("inputs")]
        inputs = [shard.state.batches[position] for position in positions]
        name = command.text("out", "-")
        if name == "-":
            outcome = await compacting.compact(shard, inputs, command.text("claimant", "-").replace("-", ""))
            return f"{outcome.value}"
        since = Frontier(command.number("since", shard.state.since))
        parts = await compacting._merge(shard, inputs, since)
        self.outputs[name] = (tuple(batch.id for batch in inputs), since, parts)
        return f"{_parts(parts)}\n{_rows(await self._fetch(parts))}"

    async def do_apply_merge_res(self, command: Command) -> str:
        """Put a kept result in the place of its inputs. `lie`: claim one more than there is."""
        ids, since, parts = self.outputs[command.text("in")]
        if command.number("lie", 0):
            parts = tuple(msgspec.structs.replace(part, diff_sum=part.diff_sum + 1) for part in parts)
        since = Frontier(command.number("since", since))
        shard = await self._shard()
        self.consensus.fate = command.text("fault", "none").replace("none", "")
        applying = asyncio.ensure_future(
            shard.commit(
                lambda state, attempt: commands.replace_batches(
                    state, ids=ids, since=since, parts=parts, uncertain=attempt.uncertain
                )
            )
        )
        await self._until(applying)
        return str((await applying).value)

    async def do_write_rollup(self, command: Command) -> str:
        shard = await self._shard()
        self.rollups[command.text("out", "r")] = shard.state.seqno
        return f"v{shard.state.seqno} {(await roll_up(shard, shard.state)).value}"

    async def do_add_rollup(self, command: Command) -> str:
        """List a rollup of the version that `name` was written at, once more and under another key."""
        shard = await self._shard()
        seqno = self.rollups[command.text("name")]
        entry = shard.state.rollups.get(seqno) or next(iter(shard.state.rollups.values()))
        other = msgspec.structs.replace(entry, key=entry.key + "-again")
        outcome = await shard.commit(lambda s, _: commands.add_rollup(s, seqno=seqno, rollup=other, uncertain=False))
        return str(outcome.value)

    async def do_rollups(self, _: Command) -> str:
        state = await self._state()
        return " ".join(f"v{seqno}" for seqno in sorted(state.rollups)) or "none"

    async def do_gc(self, command: Command) -> str:
        """One step, to where it is due or to `to`; `times` of them at once."""
        shard = await self._shard()
        due = collectable(shard.state, self.config.collect_versions)
        to = SeqNo(command.number("to", due if due is not None else -1))
        if to < 0:
            return "nothing is due"
        results = await asyncio.gather(*(collect_garbage(shard, to) for _ in range(command.number("times", 1))))
        live = await self.consensus.scan(self.id, SeqNo(0))
        return f"to v{to}: {' '.join(sorted(one.value for one in results))}; live from v{live[0].seqno}"

    async def do_perform_maintenance(self, _: Command) -> str:
        """Whatever is due, until nothing is."""
        self.client._maintenance[self.id].poke(await self._state())
        await self.client._maintenance[self.id].idle()
        return ""

    async def do_lose_blobs(self, command: Command) -> str:
        """Take blobs of an owner away; `restore-blobs` brings them back."""
        self.lost: dict[str, bytes] = {}
        for key, _ in await self.blob.list_prefix(f"{self.id}/{command.text('owner')}"):
            data = await self.blob.get(key)
            assert data is not None
            self.lost[key] = data
            await self.blob.delete(key)
        return f"{len(self.lost)} lost"

    async def do_restore_blobs(self, _: Command) -> str:
        for key, data in self.lost.items():
            await self.blob.set(key, data)
        return f"{len(self.lost)} restored"

    async def do_finalize(self, _: Command) -> str:
        await self.client.finalize(self.id)
        self.appended.clear()
        return ""

    async def do_is_finalized(self, _: Command) -> str:
        return str((await self._state()).tombstone).lower()

    async def _fetch(self, parts: Sequence[Part]) -> list[Updates]:
        shard = await self._shard()
        batch = LinkedBatch(-1, 0, 0, tuple(parts))
        return [await shard.fetch_part((batch.id, index, part), SCHEMA, keep=False) for index, part in enumerate(parts)]


def _change(line: str) -> Change:
    key, time, diff = (int(word) for word in line.split())
    return key, time, diff


def _frontier(text: str) -> Frontier:
    return DONE if text == "done" else Frontier(int(text))


def _time(frontier: int) -> str:
    return "done" if frontier == DONE else str(frontier)


def _parts(parts: Sequence[Part]) -> str:
    if not parts:
        return "empty"
    rows = sum(part.rows for part in parts)
    hollow = [part for part in parts if isinstance(part, HollowPart)]
    runs = {part.run for part in hollow if part.run}
    kind = f"{len(hollow)} in blobs" if hollow else "inline"
    if hollow and len(hollow) < len(parts):
        kind += f", {len(parts) - len(hollow)} inline"
    return f"{rows} updates, {kind}" + (f", {len(runs)} sorted run{'s' * (len(runs) > 1)}" if runs else "")


def _rows(parts: Sequence[Updates]) -> str:
    counted = tally(parts)
    lines = [f"{key} {time} {count:+d}" for (key, time), count in sorted(counted.items(), key=lambda one: one[0][::-1])]
    if len(lines) > _SHOWN:
        return f"{len(lines)} rows, diffs sum to {sum(counted.values())}"
    return "\n".join(lines) or "no rows"
