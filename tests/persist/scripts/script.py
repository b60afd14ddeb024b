"""Text scripts: commands with arguments and input lines, and what they answer.

    # a comment
    compare-and-append batch=b0 expect=0 new=3
    a line of input
    ----
    what the command answers, up to an empty line

`run` checks every answer. With ``PENSTOCK_REWRITE=1`` the answers that it got are written into the file instead: review
the difference as you would review code.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

REWRITE = os.environ.get("PENSTOCK_REWRITE") == "1"


@dataclass
class Command:
    name: str
    arguments: dict[str, str]
    lines: list[str]
    expected: str
    line: int
    source: list[str] = field(default_factory=list)

    def text(self, name: str, default: str | None = None) -> str:
        if name not in self.arguments and default is None:
            raise ValueError(f"{self.name} needs {name}=")
        return self.arguments.get(name, default or "")

    def number(self, name: str, default: int | None = None) -> int:
        return int(self.text(name, None if default is None else str(default)))

    def names(self, name: str) -> list[str]:
        return [one for one in self.text(name, "").split(",") if one]


def parse(text: str) -> list[Command | str]:
    """Commands, and between them comments as they stand."""
    found: list[Command | str] = []
    lines = text.splitlines()
    position = 0
    while position < len(lines):
        line = lines[position]
        if not line.strip() or line.startswith("#"):
            found.append(line)
            position += 1
            continue
        start = position
        name, *arguments = line.split()
        position += 1
        given: list[str] = []
        while position < len(lines) and lines[position] != "----":
            given.append(lines[position])
            position += 1
        if position == len(lines):
            raise ValueError(f"line {start + 1}: {name} has no ---- after it")
        source = lines[start : position + 1]
        position += 1
        answer: list[str] = []
        while position < len(lines) and lines[position].strip():
            answer.append(lines[position])
            position += 1
        pairs = dict(one.partition("=")[::2] for one in arguments)
        found.append(Command(name, pairs, given, "\n".join(answer), start + 1, source))
    return found


Handlers = dict[str, Callable[[Command], Awaitable[str]]]


def run(path: Path, converse: Callable[[list[Command | str]], Awaitable[str]]) -> None:
    """Run the script at `path`. Raises AssertionError for another answer than the expected one."""
    script = parse(path.read_text())
    assert len(script) > 1, path
    text = asyncio.run(converse(script))  # type: ignore[arg-type]
    if REWRITE:
        path.write_text(text)


async def ask(script: list[Command | str], handlers: Handlers) -> str:
    """Run the commands of a script; returns it with the answers that were given."""
    out: list[str] = []
    for one in script:
        if isinstance(one, str):
            out.append(one)
            continue
        if one.name not in handlers:
            raise ValueError(f"line {one.line}: unknown command {one.name}")
        answer = (await handlers[one.name](one)).strip() or "ok"
        out += [*one.source, *answer.splitlines()]
        if not REWRITE:
            assert answer == one.expected, (
                f"line {one.line}: {one.source[0]}\n--- expected\n{one.expected}\n--- got\n{answer}"
            )
    return "\n".join(out) + "\n"
