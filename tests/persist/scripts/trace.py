"""Commands of scripts against the pure state: batches by their numbers of rows, without stores or data."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from penstock.persist import InvalidUsage, Mismatch, PersistConfig, commands
from penstock.persist.commands import Step
from penstock.persist.policy import Policy
from penstock.persist.state import HollowPart, InlinePart, LinkedBatch, Part, State, apply, decode_rollup, encode_rollup
from penstock.runtime import DONE, Frontier
from tests.persist.scripts.script import Command
from tests.persist.shards import most_urgent


class Trace:
    """One state, and the policy of compaction."""

    def __init__(self) -> None:
        self.state = State()
        self.policy = Policy(PersistConfig(compaction_fan_in=4))

    def handlers(self) -> dict[str, Callable[[Command], Awaitable[str]]]:
        return {name[3:].replace("_", "-"): getattr(self, name) for name in dir(self) if name.startswith("do_")}

    def _commit(self, step: Step[object]) -> object:
        if step.diff is not None:
            self.state = apply(self.state, replace(step.diff, seqno=self.state.seqno + 1))
            assert decode_rollup("s", encode_rollup(self.state)) == self.state
        return step.result

    async def do_policy(self, command: Command) -> str:
        self.policy = Policy(
            PersistConfig(
                compaction_fan_in=command.number("fan_in"),
                inline_total_bytes=command.number("inline_total", 1 << 20),
            )
        )
        return ""

    async def do_push_batch(self, command: Command) -> str:
        """`rows` 0: progress only. `inline`: bytes in the state. `times`: so many of them, one after the other."""
        for _ in range(command.number("times", 1)):
            lower = command.number("lower", self.state.upper)
            upper = DONE if command.text("upper", "") == "done" else Frontier(command.number("upper", lower + 1))
            rows, inline = command.number("rows", 1), command.number("inline", 0)
            part: Part = (
                InlinePart(bytes(inline), 0, rows, rows, lower, lower)
                if inline
                else HollowPart(f"p{self.state.seqno + 1}", "parquet", rows, 0, rows, rows, lower, lower)
            )
            result = self._commit(
                commands.append(
                    self.state,
                    writer="w",
                    token=str((lower, upper, self.state.seqno)).encode(),
                    expected=Frontier(lower),
                    new=upper,
                    parts=(part,) if rows else (),
                    now_ms=0,
                    lease_ms=1,
                )
            )
            if isinstance(result, Mismatch):
                return f"mismatch: the upper is {_time(result.current_upper)}"
        return f"upper {_time(self.state.upper)}, {len(self.state.batches)} batches"

    async def do_batches(self, _: Command) -> str:
        lines = [
            f"[{one.lower},{_time(self.state.batch_upper(index))}) since {one.since}: {one.rows} updates"
            for index, one in enumerate(self.state.batches)
        ]
        return "\n".join(lines) or "none"

    async def do_since_upper(self, _: Command) -> str:
        return f"since {_time(self.state.since)} upper {_time(self.state.upper)}"

    async def do_state_bytes(self, command: Command) -> str:
        size = len(encode_rollup(self.state))
        limit = command.number("at_most")
        return f"at most {limit}" if size <= limit else f"{size}, more than {limit}"

    async def do_downgrade_since(self, command: Command) -> str:
        self._commit(commands.register_critical(self.state, reader="c", opaque=0, purpose=""))
        to = DONE if command.text("since") == "done" else Frontier(command.number("since"))
        self._commit(
            commands.downgrade_critical(
                self.state, reader="c", expected_opaque=0, new_opaque=0, since=to, uncertain=False
            )
        )
        return await self.do_since_upper(command)

    async def do_choose(self, command: Command) -> str:
        """What the policy would merge, by the lowers of the batches."""
        claimed = frozenset(self.state.batches[int(one)].id for one in command.names("claimed"))
        chosen = most_urgent(self.policy, self.state, claimed)
        return " ".join(str(batch.lower) for batch in chosen) or "nothing"

    async def do_merge(self, command: Command) -> str:
        """Do what the policy chooses until it chooses nothing; `keeps`: percent of the rows that do not cancel out."""
        merges = rewritten = 0
        while inputs := most_urgent(self.policy, self.state):
            total = sum(batch.rows for batch in inputs)
            self._replace(inputs, max(1, total * command.number("keeps", 100) // 100), total)
            merges, rewritten = merges + 1, rewritten + total
        return f"{merges} merges, {rewritten} rows, {len(self.state.batches)} batches left"

    def _replace(self, inputs: tuple[LinkedBatch, ...], rows: int, diff_sum: int) -> object:
        part = HollowPart(
            f"m{self.state.seqno + 1}", "parquet", rows, 0, rows, diff_sum, max(self.state.since, inputs[0].lower), 0, 1
        )
        return self._commit(
            commands.replace_batches(
                self.state,
                ids=tuple(batch.id for batch in inputs),
                since=Frontier(self.state.since),
                parts=(part,) if rows else (),
                uncertain=False,
            )
        )

    async def do_apply_merge_res(self, command: Command) -> str:
        """`inputs`: positions, or numbers of batches that may be gone (`#n`). `sum`: of the output's diffs."""
        batches = self.state.batches
        ids = tuple(int(one[1:]) if one[0] == "#" else batches[int(one)].id for one in command.names("inputs"))
        rows = command.number("rows")
        since = Frontier(command.number("since", self.state.since))
        first = command.number("first", max(int(since), 0))
        parts: tuple[Part, ...] = ()
        if rows:
            parts = (
                HollowPart(command.text("out", "m"), "parquet", 1, 0, rows, command.number("sum", rows), first, 0, 1),
            )
        try:
            result = self._commit(
                commands.replace_batches(
                    self.state, ids=ids, since=since, parts=parts, uncertain=bool(command.number("uncertain", 0))
                )
            )
        except InvalidUsage as error:
            return f"refused: {error.message}"
        return str(getattr(result, "value", result))

    async def do_ids(self, _: Command) -> str:
        return " ".join(f"#{batch.id}" for batch in self.state.batches)


def _time(frontier: int) -> str:
    return "done" if frontier == DONE else str(frontier)
