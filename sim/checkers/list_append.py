"""Transactions that read and append to lists are strictly serializable.

After Elle (Kingsbury and Alvaro, VLDB 2020). Every value is appended once, so a list that was read shows its own
history: the order of the appends to a key (ww), whose append a read saw last (wr), and which append a read did not see
yet (rw). With these and the real-time order (one ended before the other began) as edges, an acyclic graph is an order
in which the transactions could have happened one by one; a cycle is an anomaly and its own proof.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Value = str
Key = str


@dataclass
class Transaction:
    """`outcome`: True committed, False certainly not, None unknown. `ended`: when the client was told."""

    name: str
    began: float
    ended: float = math.inf
    outcome: bool | None = None
    reads: dict[Key, tuple[Value, ...]] = field(default_factory=dict)
    """What was there before its own appends."""
    appends: dict[Key, list[Value]] = field(default_factory=dict)


Edges = dict[str, dict[str, str]]
"""From, to, why."""


def anomalies(transactions: Sequence[Transaction]) -> list[str]:
    """Everything that contradicts strict serializability, each with its witness; empty when nothing does."""
    writer = {(key, value): t for t in transactions for key, values in t.appends.items() for value in values}
    readers = [t for t in transactions if t.outcome is True]
    found = _bad_reads(readers, writer)
    orders = _version_orders(readers, found)
    if found:
        return found  # without version orders there is no graph
    committed = {t.name: t for t in transactions if t.outcome is True}
    for key, order in orders.items():
        for value in order:
            one = writer[key, value]
            committed.setdefault(one.name, one)
    edges = _edges(list(committed.values()), readers, orders, writer)
    return [_describe(cycle, edges) for cycle in _cycles(edges)]


def _bad_reads(readers: Iterable[Transaction], writer: dict[tuple[Key, Value], Transaction]) -> list[str]:
    found = []
    for reader in readers:
        for key, values in reader.reads.items():
            if len(set(values)) < len(values):
                found.append(f"doubled value: {reader.name} read {key} = {list(values)}")
            for value in values:
                one = writer.get((key, value))
                if one is None:
                    found.append(f"garbage: {reader.name} read {value} of {key}, which nobody appended")
                elif one.outcome is False:
                    found.append(f"G1a aborted read: {reader.name} read {value} of {key} by {one.name}, which failed")
            last = writer.get((key, values[-1])) if values else None
            if last is not None and last is not reader and last.appends[key][-1] != values[-1]:
                found.append(f"G1b intermediate read: {reader.name} read {key} up to {values[-1]} by {last.name}")
    return found


def _version_orders(readers: Iterable[Transaction], found: list[str]) -> dict[Key, tuple[Value, ...]]:
    """The longest list read of each key; all others must be its beginnings."""
    orders: dict[Key, tuple[Value, ...]] = {}
    for reader in readers:
        for key, values in reader.reads.items():
            if len(values) > len(orders.get(key, ())):
                orders[key] = values
    for reader in readers:
        for key, values in reader.reads.items():
            if orders.get(key, ())[: len(values)] != values:
                found.append(f"incompatible orders: {reader.name} read {key} = {list(values)}, others {orders[key]}")
    return orders


def _edges(
    committed: Sequence[Transaction],
    readers: Iterable[Transaction],
    orders: dict[Key, tuple[Value, ...]],
    writer: dict[tuple[Key, Value], Transaction],
) -> Edges:
    edges: Edges = defaultdict(dict)

    def edge(before: Transaction, after: Transaction, why: str) -> None:
        if before is not after:
            edges[before.name].setdefault(after.name, why)

    for key, order in orders.items():
        for first, second in pairwise(order):
            edge(writer[key, first], writer[key, second], f"ww: {key} has {second} after {first}")
    for reader in readers:
        for key, values in reader.reads.items():
            if values:
                edge(writer[key, values[-1]], reader, f"wr: {key} was read up to {values[-1]}")
            unseen = orders.get(key, ())[len(values) : len(values) + 1]
            for value in unseen:
                edge(reader, writer[key, value], f"rw: {key} was read without {value}")
        # Committed appends that nobody ever saw come after everything that was read of their key.
    for one in committed:
        for key, appended in one.appends.items():
            if one.outcome is True and appended and appended[0] not in orders.get(key, ()):
                for reader in readers:
                    if key in reader.reads:
                        edge(reader, one, f"rw: {key} was read without {appended[0]}")
    _real_time(committed, edge)
    return edges


def _real_time(committed: Sequence[Transaction], edge: object) -> None:
    """An edge from each transaction to those that began after it ended, without the ones that others imply."""
    assert callable(edge)
    events = [(one.began, 1, index) for index, one in enumerate(committed)]
    events += [(one.ended, 0, index) for index, one in enumerate(committed) if one.ended < math.inf]
    newest: set[int] = set()
    for _, is_begin, index in sorted(events):
        one = committed[index]
        if is_begin:
            for other in sorted(newest):
                edge(committed[other], one, f"real time: ended at {committed[other].ended:.6f}, began {one.began:.6f}")
        else:
            newest = {other for other in newest if committed[other].ended >= one.began}
            newest.add(index)


def _cycles(edges: Edges) -> list[list[str]]:
    """The shortest cycle in each strongly connected component of more than one transaction."""
    return [_shortest(component, edges) for component in strong_components(edges) if len(component) > 1]


def strong_components(edges: Edges) -> list[list[str]]:
    """Tarjan's algorithm, without recursion."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    components: list[list[str]] = []
    nodes = dict.fromkeys([*edges, *(to for targets in edges.values() for to in targets)])
    for root in nodes:
        if root in index:
            continue
        work = [(root, iter(edges.get(root, {})))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(edges.get(target, {}))))
                    break
                if target in on_stack:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component: list[str] = []
                    while not component or component[-1] != node:
                        component.append(stack.pop())
                        on_stack.discard(component[-1])
                    components.append(component)
    return components


def _shortest(component: Sequence[str], edges: Edges) -> list[str]:
    members = set(component)
    best: list[str] = []
    for start in component[:50]:
        came: dict[str, str] = {}
        queue = deque([start])
        while queue:
            node = queue.popleft()
            if start in edges.get(node, {}):
                cycle = [node]
                while cycle[-1] != start:
                    cycle.append(came[cycle[-1]])
                if not best or len(cycle) < len(best):
                    best = cycle[::-1]
                break
            for target in edges.get(node, {}):
                if target in members and target not in came and target != start:
                    came[target] = node
                    queue.append(target)
    return best


def _describe(cycle: Sequence[str], edges: Edges) -> str:
    reasons = [edges[one][two] for one, two in zip(cycle, [*cycle[1:], cycle[0]], strict=True)]
    kinds = {reason.partition(":")[0] for reason in reasons}
    unseen = sum(reason.startswith("rw") for reason in reasons)
    name = "G0" if kinds <= {"ww", "real time"} else "G1c" if unseen == 0 else "G-single" if unseen == 1 else "G2"
    if "real time" in kinds:
        name += " against real time"
    steps = "; ".join(
        f"{one} -> {two} ({edges[one][two]})" for one, two in zip(cycle, [*cycle[1:], cycle[0]], strict=True)
    )
    return f"{name}: {steps}"
