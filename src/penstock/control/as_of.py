"""At start: from which time on does each dataflow compute?

Too early, and its inputs are compacted beyond it, or a replica that still runs it has compacted its own
state. Too late, and the history of a view gets a hole. Each dataflow has bounds ``[lower, upper]`` that
constraints narrow in a fixed order; the answer is the upper bound, the latest time possible: least history to
replay, best match with what replicas run. Hard constraints first:

1. not before the since of any durable input (passed on to whoever reads the dataflow's indexes);
2. for a view: at most one step before its shard's upper, so that it resumes where the durable output stopped
   (passed on to the indexes it reads).

then soft ones, as far as the hard ones leave room:

3. before the upper of every durable input it depends on, so that it can be hydrated at once;
4. an index is readable as far back as its retention says, and readable now.

A hard constraint that cannot be met means law 5 was broken before: an input was compacted past the upper of a
view. That cannot be undone by waiting. The bounds are sealed, the flow is reported in `failures`, and
everything else goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from penstock.control.specs import Frontiers
from penstock.runtime import DONE, Frontier, GlobalId, Timestamp, meet, step_back


@dataclass(frozen=True)
class Flow:
    """A dataflow to be started. `inputs`: durable collections and indexes it imports. `sink`: the durable
    collection it writes, or None for an index. `retention_ms`: how far an index stays readable behind its
    upper.
    """

    id: GlobalId
    inputs: tuple[GlobalId, ...]
    sink: GlobalId | None = None
    retention_ms: int | None = None


@dataclass(frozen=True)
class AsOfs:
    """`chosen`: per flow; `DONE` for views that are complete and need not run. `failures`: why a flow has a
    hole.
    """

    chosen: dict[GlobalId, Frontier]
    failures: dict[GlobalId, str]


class _Bounds:
    def __init__(self) -> None:
        self.lower = Frontier(0)
        self.upper = DONE
        self.sealed = False

    def raise_lower(self, to: Frontier) -> bool:
        """Whether it could be met."""
        if self.sealed:
            return True
        if to > self.upper:
            self.lower, self.sealed = self.upper, True
            return False
        self.lower = max(self.lower, to)
        return True

    def cut_upper(self, to: Frontier) -> bool:
        if self.sealed:
            return True
        if to < self.lower:
            self.upper, self.sealed = self.lower, True
            return False
        self.upper = min(self.upper, to)
        return True


def select_as_ofs(flows: Sequence[Flow], storage: Mapping[GlobalId, Frontiers], now: Timestamp) -> AsOfs:
    """`flows`: inputs before users. `storage`: each durable collection that is read or written. `now`: the
    read time.
    """
    return _Selection(flows, storage, now).run()


class _Selection:
    def __init__(self, flows: Sequence[Flow], storage: Mapping[GlobalId, Frontiers], now: Timestamp) -> None:
        self._storage = storage
        self._now = now
        self._complete = [flow.id for flow in flows if flow.sink and storage[flow.sink].upper == DONE]
        self._flows = {flow.id: flow for flow in flows if flow.id not in self._complete}
        self._bounds = {id_: _Bounds() for id_ in self._flows}
        self._failures: dict[GlobalId, str] = {}

    def run(self) -> AsOfs:
        self._after_input_sinces()
        self._before_output_uppers()
        uppers = self._transitive_uppers()
        self._soft_upper(lambda flow: _hydratable(uppers[flow.id]))
        self._soft_upper(lambda flow: self._retained_from(flow, uppers[flow.id]))
        self._soft_upper(lambda flow: None if flow.sink else Frontier(self._now))
        chosen = {id_: bounds.upper for id_, bounds in self._bounds.items()}
        return AsOfs(chosen | dict.fromkeys(self._complete, DONE), self._failures)

    def _after_input_sinces(self) -> None:
        for flow in self._flows.values():  # inputs first: one pass is a fixpoint
            for input_ in flow.inputs:
                if input_ in self._bounds:
                    since = self._bounds[input_].lower
                else:
                    since = self._storage[input_].since
                if not self._bounds[flow.id].raise_lower(since):
                    self._fail(flow, f"its input {input_} is readable only from {since} on")

    def _before_output_uppers(self) -> None:
        for flow in self._flows.values():
            if flow.sink is None:
                continue
            output, lower = self._storage[flow.sink], self._bounds[flow.id].lower
            if output.upper == 0:
                # Nobody can have read anything of it: where it was promised to begin is good, later will do.
                if output.since > 0:
                    self._bounds[flow.id].cut_upper(max(output.since, lower))
                continue
            fresh = output.upper <= output.since
            limit = output.since if fresh else Frontier(step_back(output.upper))
            if not self._bounds[flow.id].cut_upper(limit):
                self._fail(
                    flow,
                    f"its shard is complete up to {output.upper}, but its inputs are readable only from {lower} on",
                )
        self._propagate_upper(hard=True)

    def _transitive_uppers(self) -> dict[GlobalId, Frontier]:
        """Per flow: the least upper of the durable collections that it depends on, directly or through
        indexes.
        """
        uppers: dict[GlobalId, Frontier] = {}
        for flow in self._flows.values():
            uppers[flow.id] = meet(
                *(uppers[input_] if input_ in self._flows else self._storage[input_].upper for input_ in flow.inputs)
            )
        return uppers

    def _retained_from(self, flow: Flow, upper: Frontier) -> Frontier | None:
        if flow.sink is not None or flow.retention_ms is None:
            return None
        newest = self._now if upper == DONE else upper
        return Frontier(max(newest - flow.retention_ms, 0))

    def _soft_upper(self, limit_of: Callable[[Flow], Frontier | None]) -> None:
        for flow in self._flows.values():
            limit = limit_of(flow)
            if limit is not None:
                bounds = self._bounds[flow.id]
                bounds.cut_upper(max(limit, bounds.lower))
        self._propagate_upper(hard=False)

    def _propagate_upper(self, *, hard: bool) -> None:
        """What a flow needs, the indexes it reads must offer. Users first: one pass is a fixpoint."""
        for flow in reversed(self._flows.values()):
            for input_ in flow.inputs:
                if input_ in self._bounds and not self._bounds[input_].cut_upper(self._bounds[flow.id].upper):
                    assert hard, f"{input_} has its lower bound above the upper bound of its user {flow.id}"
                    self._fail(self._flows[input_], f"its user {flow.id} needs an earlier time")

    def _fail(self, flow: Flow, why: str) -> None:
        self._failures.setdefault(flow.id, why)


def _hydratable(inputs_upper: Frontier) -> Frontier | None:
    return None if inputs_upper == DONE else Frontier(step_back(inputs_upper))
