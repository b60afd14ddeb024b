"""What the whole suite stands on: a floor under the number of tests that ran.

A filter that matches nothing, a directory that is not collected or a guard that skips half of the suite must not
look like success. `make test` asks for the floor; a run of a few tests by hand does not.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FLOOR = Path(__file__).parent / "floor.txt"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if not os.environ.get("PENSTOCK_TEST_FLOOR") or hasattr(session.config, "workerinput"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None
    passed = len(reporter.stats.get("passed", []))
    floor = int(FLOOR.read_text())
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and passed < floor:
        reporter.write_line(f"only {passed} tests passed where {floor} must (tests/floor.txt)", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
