"""What the URLs of stores have in common: settings with units in the query, secrets that are never shown.

A URL is typed by a person, so that a setting nobody knows, a number without a unit or a value out of its range
is refused at once, by name, instead of being ignored. Every message shows the URL through `masked`.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

_SECRET = re.compile(
    r"pass|secret|token|sas|credential|(account|access|api|service_account)_?key|sslkey", re.IGNORECASE
)
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h)")
_FLAGS = {"true": True, "1": True, "on": True, "false": False, "0": False, "off": False}


def masked(url: str) -> str:
    """`url` for people and logs: a password and every secret setting replaced by ``***``."""
    url = url.strip()
    try:
        parts = urlsplit(url)
        netloc, query = parts.netloc, parts.query
    except ValueError:
        return "***"  # not even its parts can be told: it may be all secret
    user, at, host = netloc.rpartition("@")
    if ":" in user:
        user = user.partition(":")[0] + ":***"
    start = url[: len(parts.scheme) + 1] if parts.scheme else ""
    authority = f"//{user}{at}{host}" if url[len(start) :].startswith("//") else ""
    return start + authority + parts.path + (f"?{_masked_query(query)}" if query else "")


def has_secret(url: str) -> bool:
    """Whether `url` holds what others on this machine must not see, say in a list of processes."""
    return "***" in masked(url)


def _masked_query(query: str) -> str:
    pairs = [pair.partition("=") for pair in query.split("&")] if query else []
    return "&".join(
        f"{name}=***" if _SECRET.search(unquote(name)) else name + equals + value for name, equals, value in pairs
    )


class StoreUrl:
    """The parts of a store's URL. Settings are taken by name; `finish` refuses those that nobody took.

    All methods raise `ValueError`, with the URL masked, for what can never work.
    """

    def __init__(self, url: str) -> None:
        self.shown = masked(url)
        try:
            parts = urlsplit(url)
            self.host = unquote(parts.netloc)
        except ValueError:
            raise ValueError(f"{self.shown} is not a URL") from None
        self._parts = parts
        self.scheme = parts.scheme
        self.path = unquote(parts.path)
        if parts.fragment:
            raise ValueError(f"{self.shown}: a '#' in it must be written as %23")
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        self._settings = dict(pairs)
        if len(pairs) != len(self._settings):
            raise ValueError(f"{self.shown} gives a setting twice")

    def text(self, name: str, default: str | None = None) -> str | None:
        return self._settings.pop(name, default)

    def choice(self, name: str, allowed: tuple[str, ...]) -> str | None:
        """One of `allowed`, or None when it is not given."""
        value = self.text(name)
        if value is not None and value not in allowed:
            raise ValueError(f"{self.shown}: {name} must be one of {', '.join(allowed)}")
        return value

    def duration_s(self, name: str, default_s: float) -> float:
        """Seconds, written with a unit: 500ms, 5s, 2m, 1h. Positive."""
        value = self.text(name)
        if value is None:
            return default_s
        match = _DURATION.fullmatch(value)
        seconds = float(match[1]) * _UNITS_S[match[2]] if match else 0.0
        if not 0 < seconds <= 86_400 * 30:
            raise ValueError(f"{self.shown}: {name} must be a positive duration with a unit, such as 500ms, 5s or 2m")
        return seconds

    def count(self, name: str, default: int, *, low: int, high: int) -> int:
        value = self.text(name)
        if value is None:
            return default
        if not (value.isascii() and value.isdecimal() and low <= int(value) <= high):
            raise ValueError(f"{self.shown}: {name} must be a whole number from {low} to {high}")
        return int(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.text(name)
        if value is None:
            return default
        if value not in _FLAGS:
            raise ValueError(f"{self.shown}: {name} must be true or false")
        return _FLAGS[value]

    def rest(self) -> str:
        """The URL without the settings taken so far: for a library that knows the others."""
        return urlunsplit(self._parts._replace(query=urlencode(self._settings, quote_via=quote)))

    def finish(self, known: str) -> None:
        """Refuse settings that nobody took. `known`: those there are, for the message."""
        if self._settings:
            unknown = ", ".join(sorted(self._settings))
            raise ValueError(f"{self.shown}: unknown setting {unknown}; there are {known or 'none'}")
