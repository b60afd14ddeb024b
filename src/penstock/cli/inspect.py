"""``penstock inspect``: look into the stores of a database, running or not, sound or damaged, and write nothing."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from penstock.persist import PersistConfig, ShardId, inspect
from penstock.persist.readonly import BlobReader, ConsensusReader, open_for_reading
from penstock.persist.txn import inspect as txns_inspect
from penstock.runtime import PenstockError, SystemClock

app = typer.Typer(
    help="Look into shards: what they hold, who holds them, where their bytes are, what is wrong. Nothing is written.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataDir = Annotated[
    Path | None, typer.Option(help="The data directory of an embedded database, instead of the two URLs.")
]
ConsensusUrl = Annotated[str, typer.Option("--consensus", help="postgres://… or sqlite:FILE.")]
BlobUrl = Annotated[str, typer.Option("--blob", help="file:DIRECTORY or the URL of an object store.")]
Shard = Annotated[str, typer.Option(help="The shard, s<uuid>.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")]
LeakedAfter = Annotated[
    float, typer.Option(help="Hours after which a blob that nothing refers to counts as leaked.", min=0)
]

_LEAKED_AFTER_H = 2 * PersistConfig.link_ms / 3_600_000
_AGES = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000))
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")

View = Callable[[ConsensusReader, BlobReader], Awaitable[Any]]


@app.command()
def shard(
    consensus: ConsensusUrl = "",
    blob: BlobUrl = "",
    shard: Shard = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """One shard in short, with its live versions and its problems; without --shard: all of them, one line each."""

    async def one(c: ConsensusReader, b: BlobReader) -> inspect.ShardView:
        return inspect.view_shard(await inspect.load(c, b, ShardId(shard)), _now_ms())

    async def all_(c: ConsensusReader, b: BlobReader) -> dict[str, list[inspect.ShardView]]:
        keys = await c.list_keys()
        return {"shards": [inspect.view_shard(await inspect.load(c, b, ShardId(key)), _now_ms()) for key in keys]}

    if shard:
        _show(one, _print_shard, consensus, blob, data_dir, as_json)
    else:
        _show(all_, _print_shards, consensus, blob, data_dir, as_json)


@app.command()
def state(
    shard: Shard,
    consensus: ConsensusUrl = "",
    blob: BlobUrl = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """The newest state: frontiers, batches, who holds what until when, writers, rollups, claims."""

    async def view(c: ConsensusReader, b: BlobReader) -> inspect.ShardView:
        return inspect.view_shard(await inspect.load(c, b, ShardId(shard)), _now_ms())

    _show(view, _print_state, consensus, blob, data_dir, as_json)


@app.command()
def blobs(
    shard: Shard,
    consensus: ConsensusUrl = "",
    blob: BlobUrl = "",
    data_dir: DataDir = None,
    leaked_after_hours: LeakedAfter = _LEAKED_AFTER_H,
    as_json: Json = False,
) -> None:
    """Where the bytes of a shard are, and blobs that nothing refers to, the largest first."""

    async def view(c: ConsensusReader, b: BlobReader) -> inspect.BlobsView:
        return await inspect.blobs(
            c, b, ShardId(shard), now_ms=_now_ms(), leaked_after_ms=round(leaked_after_hours * 3_600_000)
        )

    _show(view, _print_blobs, consensus, blob, data_dir, as_json)


@app.command()
def usage(
    consensus: ConsensusUrl = "",
    blob: BlobUrl = "",
    data_dir: DataDir = None,
    leaked_after_hours: LeakedAfter = _LEAKED_AFTER_H,
    as_json: Json = False,
) -> None:
    """Where the bytes of all shards are, the largest shards first."""

    async def view(c: ConsensusReader, b: BlobReader) -> inspect.UsageView:
        return await inspect.usage(c, b, now_ms=_now_ms(), leaked_after_ms=round(leaked_after_hours * 3_600_000))

    _show(view, _print_usage, consensus, blob, data_dir, as_json)


@app.command()
def txns(
    consensus: ConsensusUrl = "",
    blob: BlobUrl = "",
    shard: Annotated[str, typer.Option(help="The shard of the log; found by its columns when not given.")] = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """The transaction log: registered shards, their own and their logical uppers, commits that are not applied."""

    async def view(c: ConsensusReader, b: BlobReader) -> txns_inspect.TxnsView:
        logs = [ShardId(shard)] if shard else await txns_inspect.find_log(c, b)
        if len(logs) != 1:
            raise _Refused(f"there are {len(logs)} transaction logs here {logs or ''}; name one with --shard")
        return await txns_inspect.view_txns(c, b, logs[0])

    _show(view, _print_txns, consensus, blob, data_dir, as_json)


class _Refused(Exception):
    """What was asked cannot be answered; the message is for the user."""


def _show(
    view: View, render: Callable[[Console, Any], None], consensus: str, blob: str, data_dir: Path | None, as_json: bool
) -> None:
    """Answer and exit: 0, or 1 with the reason on standard error. Problems of shards are part of an answer."""

    async def main() -> Any:
        async with open_for_reading(*_urls(consensus, blob, data_dir)) as (c, b):
            return await view(c, b)

    try:
        answer = asyncio.run(main())
    except (PenstockError, ValueError, _Refused) as error:
        print(f"penstock inspect: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    else:
        render(Console(), answer)


def _urls(consensus: str, blob: str, data_dir: Path | None) -> tuple[str, str]:
    if data_dir is not None and not consensus and not blob:
        from penstock.cli.data_directory import blob_url, consensus_url

        return consensus_url(data_dir), blob_url(data_dir)
    if not consensus or not blob or data_dir is not None:
        raise _Refused("say where to look: either --data-dir, or both --consensus and --blob")
    return consensus, blob


def _print_shards(console: Console, answer: dict[str, list[inspect.ShardView]]) -> None:
    table = _table("shard", "since", "upper", "updates", "batches", "in blobs", "live versions", "readers", "problems")
    for view in answer["shards"]:
        one = view.state
        columns = (
            [_time(one.since), _time(one.upper), f"{one.rows:,}", str(len(one.batches)), _size(one.blob_bytes)]
            if one
            else ["?"] * 5
        )
        readers = "" if one is None else str(len(one.readers) + len(one.criticals))
        table.add_row(view.shard, *columns, str(view.live_diffs), readers, "; ".join(view.problems))
    console.print(table)


def _print_shard(console: Console, view: inspect.ShardView) -> None:
    console.print(f"[bold]{view.shard}[/bold]")
    if view.state is not None:
        _print_frontiers(console, view.state)
    console.print(f"live versions {view.live_diffs} from {view.earliest}, {_size(view.live_diff_bytes)}")
    table = _table("version", "when", "size", "what changed")
    for diff in view.newest_diffs[-20:]:
        table.add_row(str(diff.seqno), _when(diff.walltime_ms), _size(diff.bytes), "; ".join(diff.changed))
    console.print(table)
    _print_problems(console, view.problems)


def _print_frontiers(console: Console, one: inspect.StateView) -> None:
    console.print(
        f"since {_time(one.since)}, upper {_time(one.upper)}, version {one.seqno} of {_when(one.walltime_ms)}"
        + (", finalized" if one.tombstone else "")
    )
    console.print(
        f"{one.rows:,} updates in {len(one.batches)} batches: {_size(one.blob_bytes)} in blobs, "
        f"{_size(one.inline_bytes)} in the state"
    )
    console.print(f"held from version {one.seqno_since}, collected up to {one.collected}")


def _print_state(console: Console, view: inspect.ShardView) -> None:
    one = view.state
    console.print(f"[bold]{view.shard}[/bold]")
    if one is not None:
        _print_frontiers(console, one)
        for number, columns in enumerate(one.schemas):
            console.print(f"schema {number}: {', '.join(columns)}")
        table = _table("batch", "from", "to", "since", "updates", "parts", "runs", "in blobs", "in the state")
        for b in one.batches:
            sizes = (str(b.parts), str(b.runs), _size(b.blob_bytes), _size(b.inline_bytes))
            table.add_row(str(b.id), str(b.lower), _time(b.upper), str(b.since), f"{b.rows:,}", *sizes)
        console.print(table)
        _print_holders(console, one)
        for rollup in one.rollups:
            console.print(f"rollup of version {rollup.seqno}: {rollup.key}, {_size(rollup.bytes)}")
        for claim in one.claims:
            age = f"{_age(claim.age_ms)} ago" + ("" if claim.live else ", void")
            console.print(f"batches {claim.batches} are being compacted by {claim.claimant}, begun {age}")
    _print_problems(console, view.problems)


def _print_holders(console: Console, one: inspect.StateView) -> None:
    table = _table("who", "for", "since", "holds version", "last heard of", "expires")
    for reader in one.readers:
        lease = (str(reader.hold), f"{_age(reader.heartbeat_age_ms)} ago", f"in {_age(reader.expires_ms)}")
        table.add_row(reader.id, reader.purpose, _time(reader.since), *lease)
    for critical in one.criticals:
        table.add_row(
            critical.id, critical.purpose, _time(critical.since), "", f"opaque {critical.opaque}", "never", style="bold"
        )
    for writer in one.writers:
        lease = ("", f"{_age(writer.heartbeat_age_ms)} ago", f"in {_age(writer.expires_ms)}")
        table.add_row(writer.id, f"writer, up to {_time(writer.upper)}", "", *lease)
    console.print(table)


_KINDS = (
    ("current_parts", "parts of the newest version"),
    ("current_rollups", "full states"),
    ("older", "needed by older versions only"),
    ("pending", "not referred to, may yet be"),
    ("leaked", "leaked"),
    ("foreign", "of unknown origin"),
)


def _print_blobs(console: Console, view: inspect.BlobsView) -> None:
    console.print(f"[bold]{view.shard}[/bold]")
    table = _table("blobs", "number", "size")
    for name, what in _KINDS:
        amount: inspect.Amount = getattr(view, name)
        table.add_row(what, str(amount.blobs), _size(amount.bytes))
    table.add_row("in the state", "", _size(view.inline_bytes))
    console.print(table)
    if view.leaks:
        leaks = _table("nothing refers to", "size", "age")
        for leak in view.leaks:
            leaks.add_row(leak.key, _size(leak.bytes), "unknown" if leak.age_ms is None else _age(leak.age_ms))
        console.print(leaks)
    _print_problems(console, view.problems)


def _print_usage(console: Console, view: inspect.UsageView) -> None:
    table = _table("shard", "parts", "full states", "older", "pending", "leaked", "unknown", "in the state", "problems")
    for one in [*view.shards, view.total]:
        amounts: list[inspect.Amount] = [getattr(one, name) for name, _ in _KINDS]
        sizes = [_size(amount.bytes) if amount.blobs else "" for amount in amounts]
        table.add_row(one.shard, *sizes, _size(one.inline_bytes), "; ".join(one.problems))
    console.print(table)
    if view.unattributed.blobs:
        console.print(f"{view.unattributed.blobs} blobs of unknown shards, {_size(view.unattributed.bytes)}")


def _print_txns(console: Console, view: txns_inspect.TxnsView) -> None:
    console.print(f"[bold]{view.shard}[/bold]: logical upper {_time(view.logical_upper)}, since {_time(view.since)}")
    table = _table("registered shard", "since", "own upper", "unapplied", "size", "oldest")
    for one in view.tables:
        oldest = "" if one.oldest_unapplied is None else str(one.oldest_unapplied)
        unapplied = (str(one.unapplied), _size(one.unapplied_bytes), oldest)
        table.add_row(one.shard, str(one.registered_at), _time(one.physical_upper), *unapplied)
    console.print(table)
    for ending in view.endings:
        console.print(f"{ending} was forgotten; its own upper may not show it yet")
    _print_problems(console, view.problems)


def _print_problems(console: Console, problems: list[str]) -> None:
    for problem in problems:
        console.print(f"[red]problem:[/red] {problem}")


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _time(frontier: int | None) -> str:
    return "done" if frontier is None else str(frontier)


def _when(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ms / 1000)) + " UTC"


def _age(ms: int) -> str:
    """A duration for people: its two largest units would be one too many."""
    for unit, size in _AGES:
        if abs(ms) >= size:
            return f"{ms / size:.1f} {unit}"
    return f"{ms} ms"


def _size(count: int) -> str:
    value = float(count)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes everything")


def _now_ms() -> int:
    return SystemClock().now_ms()
