"""A store in memory that takes batches, can be held up, and fails as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from penstock.persist import CasResult, MemConsensus, SeqNo, Versioned
from penstock.persist.store import StoreFailure, check_batch
from penstock.runtime import Determinate, ExternalError


class SerializationFailure(Exception):
    """As psycopg says it."""

    sqlstate = "40001"


def conflict() -> Determinate:
    """The whole batch could not be serialized."""
    error = Determinate("cannot write")
    error.__cause__ = SerializationFailure("could not serialize access due to concurrent update")
    return error


def version(seqno: int, data: bytes = b"x") -> Versioned:
    return Versioned(SeqNo(seqno), data)


class BatchingMemConsensus(MemConsensus):
    """Each call is recorded in `batches` (single changes are batches of one) and waits while `gate` is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.in_flight = 0
        self.in_flight_max = 0
        self.fail_batch: dict[int, ExternalError] = {}
        """Size of a batch -> what is raised instead of carrying it out."""
        self.fail_member: dict[str, ExternalError] = {}
        self.raise_after_effect: ExternalError | None = None

    async def compare_and_set(self, key: str, new: Versioned) -> CasResult:
        outcome = (await self.compare_and_set_many([(key, new)]))[0]
        if isinstance(outcome, CasResult):
            return outcome
        raise outcome

    async def compare_and_set_many(self, changes: Sequence[tuple[str, Versioned]]) -> list[CasResult | StoreFailure]:
        check_batch(changes)
        self.batches.append([key for key, _ in changes])
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            await self.gate.wait()
            if len(changes) in self.fail_batch:
                raise self.fail_batch[len(changes)]
            results: list[CasResult | StoreFailure] = []
            for key, new in changes:
                failure = self.fail_member.get(key)
                results.append(failure if failure else await super().compare_and_set(key, new))
            if self.raise_after_effect is not None:
                raise self.raise_after_effect
            return results
        finally:
            self.in_flight -= 1
