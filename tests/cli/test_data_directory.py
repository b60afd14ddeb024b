"""The data directory's lock: one server at a time, told clearly, free again after any kind of end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.cli.data_directory import DataDirectory, DirectoryInUse


def test_a_second_lock_is_refused_and_says_who_has_the_first(tmp_path: Path) -> None:
    first = DataDirectory(tmp_path / "data")
    with pytest.raises(DirectoryInUse, match=rf"process {os.getpid()}\) is running on {first.path}"):
        DataDirectory(tmp_path / "data")
    first.close()
    DataDirectory(tmp_path / "data").close()


def test_a_killed_owner_leaves_the_directory_free(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from penstock.cli.data_directory import DataDirectory;"
        f"d = DataDirectory(pathlib.Path({str(tmp_path)!r})); print('locked', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"locked\n"
    with pytest.raises(DirectoryInUse):
        DataDirectory(tmp_path)
    child.send_signal(signal.SIGKILL)
    child.wait()
    DataDirectory(tmp_path).close()


def test_sockets_have_room_however_long_the_data_directory_is(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    with DataDirectory(deep) as directory:
        run = directory.run_directory()
        assert len(str(run / "replica-u12345.sock")) < 107
        assert run == directory.run_directory()
        assert run.stat().st_mode & 0o777 == 0o700
        (run / "replica.log").touch()
        directory.remove_run_directory()
        assert not run.exists()
