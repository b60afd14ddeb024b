"""A real ``penstock persistd`` as a child process, and certificates for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class PersistdProcess:
    """``penstock persistd`` with `arguments`; its log is in `log`, one JSON object per line."""

    def __init__(self, directory: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.log = directory / "persistd.log"
        command = [sys.executable, "-m", "penstock.cli", "persistd", *arguments]
        with self.log.open("a") as log:
            self._child = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **(environment or {})}
            )

    def ready(self) -> str:
        """Wait until it serves; returns its address. RuntimeError with its log when it ends instead."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if " is ready on " not in line:
            raise RuntimeError(f"persistd ended with {self._child.wait(30)}:\n{self.log.read_text()}")
        return line.rstrip().rpartition(" ")[2]

    def signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def wait(self) -> int:
        """The exit status, once it has ended."""
        return self._child.wait(30)

    def events(self) -> list[dict[str, Any]]:
        """What it has logged."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def end(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()


@contextmanager
def persistd(directory: Path, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[PersistdProcess]:
    """A started persistd, killed at the end if it still runs."""
    process = PersistdProcess(directory, *arguments, environment=environment)
    try:
        yield process
    finally:
        process.end()


def certificates(directory: Path) -> dict[str, Path]:
    """An authority and a certificate for loopback signed by it, as PEM files, and another authority: by name."""
    files = {name: directory / f"{name}.pem" for name in ("ca", "ca_key", "cert", "key", "other_ca", "other_ca_key")}

    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    for name in ("ca", "other_ca"):
        openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", 2),
            *("-keyout", files[f"{name}_key"], "-out", files[name], "-subj", f"/CN={name}"),
        )
    extensions, request = directory / "extensions", directory / "request.pem"
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", files["key"], "-out", request, "-subj", "/CN=penstock"),
    )
    openssl(
        *("x509", "-req", "-in", request, "-CA", files["ca"], "-CAkey", files["ca_key"], "-CAcreateserial"),
        *("-days", 2, "-out", files["cert"], "-extfile", extensions),
    )
    return files
