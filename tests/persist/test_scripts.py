"""Runs the text scripts of `scripts/`: each says at its top which behaviour of the product it pins down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.persist.scripts.machine import Machine
from tests.persist.scripts.script import REWRITE, ask, run
from tests.persist.scripts.trace import Trace

HERE = Path(__file__).parent / "scripts"


def scripts(kind: str) -> list[str]:
    return sorted(path.stem for path in (HERE / kind).glob("*.txt"))


@pytest.mark.parametrize("name", scripts("machine"))
def test_machine(name: str) -> None:
    async def converse(script: Any) -> str:
        machine = Machine()
        try:
            return await ask(script, machine.handlers())
        finally:
            await machine.close()

    run(HERE / "machine" / f"{name}.txt", converse)


@pytest.mark.parametrize("name", scripts("trace"))
def test_trace(name: str) -> None:
    run(HERE / "trace" / f"{name}.txt", lambda script: ask(script, Trace().handlers()))


def test_answers_are_checked_not_written() -> None:
    assert not REWRITE, "PENSTOCK_REWRITE is for people, not for a run that should find mistakes"
