"""Session variables: names, defaults, validation, and which of them clients are told about.

Each variable has one `Variable` with a function that checks a new value and gives its canonical form; an unknown
name is SQLSTATE 42704, a bad value 22023. Values set with SET LOCAL end with the transaction; those set with SET
inside a transaction that fails are taken back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from penstock.adapter.timestamps import Isolation
from penstock.runtime import SqlError

SERVER_VERSION = "16.3"
"""The PostgreSQL whose behaviour clients may expect."""

Check = Callable[[str], str | None]
"""A value's canonical form, or None when it is not valid."""


@dataclass(frozen=True)
class Variable:
    """`reported`: clients learn of changes by ParameterStatus. `check` None: the variable cannot be changed."""

    name: str
    default: str
    check: Check | None
    description: str
    reported: bool = False


def _any(value: str) -> str | None:
    return value


def _one_of(*allowed: str) -> Check:
    def check(value: str) -> str | None:
        return next((word for word in allowed if word.lower() == value.lower()), None)

    return check


def _boolean(value: str) -> str | None:
    word = value.lower()
    if word in ("on", "true", "t", "yes", "y", "1"):
        return "on"
    return "off" if word in ("off", "false", "f", "no", "n", "0") else None


def _integer(low: int, high: int) -> Check:
    def check(value: str) -> str | None:
        return value if re.fullmatch(r"[+-]?\d+", value) and low <= int(value) <= high else None

    return check


_DURATION_MS = {"us": 0.001, "ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


def _duration(value: str) -> str | None:
    ms = duration_ms(value)
    return None if ms is None else (f"{ms / 1000:g} s" if ms and ms % 1000 == 0 else f"{ms:g} ms" if ms else "0 s")


def duration_ms(value: str) -> float | None:
    """Milliseconds of ``250``, ``250ms``, ``1.5 s``, ``2min``; None when it is no duration."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|min|h|d)?\s*", value)
    return None if match is None else float(match[1]) * _DURATION_MS[match[2] or "ms"]


_BYTES = {"b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}


def bytes_of(value: str) -> int | None:
    """Bytes of ``1GB``, ``512 kB``, ``1073741824``; None when it is no size."""
    match = re.fullmatch(r"\s*(\d+)\s*([kmgt]?b)?\s*", value.lower())
    return None if match is None else int(match[1]) * _BYTES[match[2] or "b"]


def _size(value: str) -> str | None:
    return value if bytes_of(value) else None


def _isolation(value: str) -> str | None:
    level = Isolation.parse(value)
    return None if level is None else level.value


def _encoding(value: str) -> str | None:
    return "UTF8" if re.sub(r"[^a-z0-9]", "", value.lower()) in ("utf8", "unicode") else None


def _date_style(value: str) -> str | None:
    words = {word.strip().lower() for word in value.split(",")}
    return "ISO, MDY" if words <= {"iso", "mdy"} else None


def _time_zone(value: str) -> str | None:
    return "UTC" if value.lower() in ("utc", "gmt", "etc/utc", "zulu", "default", "+00:00", "0", "00:00:00") else None


_SEVERITIES = ("debug5", "debug4", "debug3", "debug2", "debug1", "debug", "log", "info", "notice", "warning", "error")

_VARIABLES = [
    Variable("application_name", "", _any, "The name of the client's program.", reported=True),
    Variable("bytea_output", "hex", _one_of("hex"), "Text form of bytea."),
    Variable("check_function_bodies", "on", _one_of("on", "off"), "Accepted for PostgreSQL's tools."),
    Variable("client_encoding", "UTF8", _encoding, "The client's character set.", reported=True),
    Variable(
        "client_min_messages",
        "notice",
        _one_of(*_SEVERITIES),
        "The least severe notice that is sent.",
    ),
    Variable("cluster", "quickstart", _any, "The cluster that queries run on.", reported=True),
    Variable("database", "materialize", _any, "The database that unqualified names begin in.", reported=True),
    Variable("DateStyle", "ISO, MDY", _date_style, "Text form of dates.", reported=True),
    Variable("default_transaction_read_only", "off", _boolean, "For new transactions."),
    Variable("extra_float_digits", "1", _integer(1, 3), "Only what prints floats exactly."),
    Variable("idle_in_transaction_session_timeout", "0 s", _duration, "Ends idle transactions; 0: never."),
    Variable("integer_datetimes", "on", None, "Times are 64-bit integers.", reported=True),
    Variable("IntervalStyle", "postgres", _one_of("postgres"), "Text form of intervals.", reported=True),
    Variable("is_superuser", "on", None, "Whether the user may do everything.", reported=True),
    Variable("max_identifier_length", "255", None, "Bytes of the longest name."),
    Variable("max_query_result_size", "1GB", _size, "The largest result that is sent."),
    Variable("mz_version", "", None, "The server's version.", reported=True),
    Variable("search_path", "public", _any, "Schemas in which unqualified names are looked up.", reported=True),
    Variable("server_encoding", "UTF8", None, "The server's character set.", reported=True),
    Variable("server_version", SERVER_VERSION, None, "PostgreSQL's version that is spoken.", reported=True),
    Variable("server_version_num", "160003", None, "The same as a number."),
    Variable("sql_safe_updates", "off", _one_of("off"), "Not offered; may only be off."),
    Variable("standard_conforming_strings", "on", _one_of("on"), "Backslashes are plain.", reported=True),
    Variable("statement_timeout", "0 s", _duration, "Ends statements that take longer; 0: never."),
    Variable("TimeZone", "UTC", _time_zone, "Only UTC.", reported=True),
    Variable("transaction_isolation", "strict serializable", _isolation, "How consistent reads are."),
    Variable("transaction_read_only", "off", _boolean, "Whether this transaction may write."),
]
SYSTEM_VARIABLES = {
    variable.name: variable
    for variable in [
        Variable(
            "persist_consensus_use_committer",
            "on",
            _boolean,
            "Whether all processes reach the consensus store through the committer, or each directly.",
        ),
    ]
}
"""By name, in lower case: what ALTER SYSTEM changes, for everybody."""

_BY_NAME = {variable.name.lower(): variable for variable in _VARIABLES}
_ALIASES = {
    "schema": "search_path",
    "time zone": "timezone",
    "names": "client_encoding",
    "max_result_size": "max_query_result_size",
    "default_transaction_isolation": "transaction_isolation",
}


def lookup(name: str) -> Variable:
    """The session variable called `name`, in any case. Raises `SqlError` 42704, 55P02 for one of the system."""
    key = name.lower()
    variable = _BY_NAME.get(_ALIASES.get(key, key))
    if key in SYSTEM_VARIABLES:
        raise SqlError(
            f'parameter "{key}" cannot be changed in a session', sqlstate="55P02", hint="Use ALTER SYSTEM SET."
        )
    if variable is None:
        raise SqlError(f'unrecognized configuration parameter "{name}"', sqlstate="42704")
    return variable


class SessionVariables:
    """The values of one session, with what a transaction changed kept apart until it ends."""

    def __init__(self, initial: dict[str, str]) -> None:
        """`initial`: values that are this session's defaults, fixed ones included; RESET returns to them."""
        self._defaults = {v.name: v.default for v in _VARIABLES} | {lookup(k).name: v for k, v in initial.items()}
        self._values = dict(self._defaults)
        self._before: dict[str, str] | None = None
        self._local: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        key = lookup(name).name
        return self._local.get(key, self._values[key])

    def set_default(self, name: str, value: str) -> None:
        """What the client asked for when it connected: RESET returns to it. Raises as `set`."""
        variable = lookup(name)
        self._defaults[variable.name] = self._values[variable.name] = checked(variable, value)

    def set(self, name: str, value: str, *, local: bool = False) -> None:
        """Change `name`. Raises `SqlError` 42704 (unknown), 22023 (bad value), 55P02 (fixed)."""
        variable = lookup(name)
        canonical = checked(variable, value)
        if local:
            self._local[variable.name] = canonical
        else:
            self._values[variable.name] = canonical
            self._local.pop(variable.name, None)

    def reset(self, name: str) -> None:
        """Back to the session's default."""
        variable = lookup(name)
        self._values[variable.name] = self._defaults[variable.name]
        self._local.pop(variable.name, None)

    def reset_all(self) -> None:
        self._values = dict(self._defaults)
        self._local.clear()

    def begin(self) -> None:
        """A transaction begins: remember what to return to when it fails."""
        if self._before is None:
            self._before = dict(self._values)

    def end(self, *, committed: bool) -> None:
        """The transaction ended."""
        if self._before is not None and not committed:
            self._values = self._before
        self._before = None
        self._local.clear()

    def reported(self) -> dict[str, str]:
        """What a client is told in ParameterStatus."""
        return {v.name: self[v.name] for v in _VARIABLES if v.reported}

    def all(self) -> list[tuple[str, str, str]]:
        """Name, value and description of every variable, by name."""
        return [(v.name, self[v.name], v.description) for v in sorted(_VARIABLES, key=lambda v: v.name.lower())]

    @property
    def isolation(self) -> Isolation:
        level = Isolation.parse(self["transaction_isolation"])
        assert level is not None
        return level

    @property
    def statement_timeout_s(self) -> float | None:
        """Seconds, or None for no limit."""
        return (duration_ms(self["statement_timeout"]) or 0) / 1000 or None

    @property
    def idle_timeout_s(self) -> float | None:
        """Seconds that a transaction block may lie idle, or None for no limit."""
        return (duration_ms(self["idle_in_transaction_session_timeout"]) or 0) / 1000 or None

    def wants_notice(self, severity: str) -> bool:
        """Whether ``client_min_messages`` lets a notice of that severity through."""
        wanted = self["client_min_messages"]
        rank = {name: number for number, name in enumerate(_SEVERITIES)}
        return rank.get(severity.lower(), rank["notice"]) >= rank[wanted]

    @property
    def search_path(self) -> list[str]:
        return [part.strip().strip('"') for part in self["search_path"].split(",") if part.strip()]

    @property
    def max_result_bytes(self) -> int:
        return bytes_of(self["max_query_result_size"]) or 1 << 30


def checked(variable: Variable, value: str) -> str:
    """The canonical form of `value`, or the error that says why not."""
    if variable.check is None:
        raise SqlError(f'parameter "{variable.name}" cannot be changed', sqlstate="55P02")
    canonical = variable.check(value)
    if canonical is None:
        raise SqlError(f'invalid value for parameter "{variable.name}": "{value}"', sqlstate="22023")
    return canonical
