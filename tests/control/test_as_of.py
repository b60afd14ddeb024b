"""As-of selection: `out <- inputs => as-of`, storage written as id(since, upper)."""

from __future__ import annotations

import re

import pytest

from penstock.control.as_of import Flow, select_as_ofs
from penstock.control.specs import Frontiers
from penstock.runtime import DONE, Frontier, GlobalId, Timestamp


def storage(text: str) -> dict[GlobalId, Frontiers]:
    found = re.findall(r"(\w+)\((\w+),(\w+)\)", text)
    times = {"empty": DONE}
    return {
        GlobalId(id_): Frontiers(times.get(since) or Frontier(int(since)), times.get(upper) or Frontier(int(upper)))
        for id_, since, upper in found
    }


def flows(text: str, stored: dict[GlobalId, Frontiers], lags: dict[str, int] | None = None) -> list[Flow]:
    result = []
    for flow in text.split():
        out, inputs = flow.split("<-")
        names = tuple(GlobalId(name) for name in inputs.split(",") if name)
        id_ = GlobalId(out)
        result.append(Flow(id_, names, id_ if id_ in stored else None, (lags or {}).get(out)))
    return result


CASES = {
    "upstream_storage_constraints": (
        "s1(10,20) s2(20,30)",
        "u1<-s1 u2<-s2 u3<-s1,s2 u4<-u1,u2",
        0,
        {},
        "10 20 20 20",
    ),
    "downstream_storage_constraints": (
        "s1(10,20) u3(10,15) u4(10,13)",
        "u1<-s1 u2<-s1 u3<-u2 u4<-u2",
        100,
        {},
        "19 12 14 12",
    ),
    "warmup_constraints": (
        "s1(10,20) s2(10,30) s3(10,40) s4(10,50)",
        "u1<-s1 u2<-s2 u3<-s3 u4<-s4 u5<-u1,u2 u6<-u3,u4",
        100,
        {},
        "19 19 39 39 19 39",
    ),
    "index_read_policy_constraints": (
        "s1(10,20) u6(10,18)",
        "u1<-s1 u2<-s1 u5<- u6<-s1",
        100,
        {"u1": 5, "u2": 15, "u5": 5},
        "15 10 95 17",
    ),
    "index_current_time_constraints": (
        "s1(10,20) s2(20,30) u4(10,12) u5(10,18)",
        "u1<-s1 u2<-s2 u3<-s1 u4<-u3 u5<-s1 u6<-",
        15,
        {},
        "15 20 11 11 17 15",
    ),
    "sealed_storage_sink": ("s1(10,20) u1(10,empty)", "u1<-s1", 100, {}, "empty"),
    "view_holding_an_index_back_spares_its_other_users": (
        "s1(10,20) u3(14,15)",
        "u1<-s1 u2<-u1 u3<-u1",
        100,
        {"u1": 1, "u2": 1},
        "14 19 14",
    ),
    "view_far_ahead_of_its_input": ("s1(10,20) m(0,1000)", "m<-s1", 100, {}, "19"),
    "fresh_view": ("s1(10,20) m(10,10)", "m<-s1", 100, {}, "10"),
    "view_without_contents_begins_where_its_inputs_do": ("s1(10,20) m(0,0) n(5,0)", "m<-s1 n<-s1", 100, {}, "19 10"),
    "fresh_view_with_since_ahead": ("s1(10,20) m(15,0)", "m<-s1", 100, {}, "15"),
}


@pytest.mark.parametrize("name", CASES)
def test_selection(name: str) -> None:
    stored_text, flow_text, now, lags, expected = CASES[name]
    stored = storage(stored_text)
    selected = select_as_ofs(flows(flow_text, stored, lags), stored, Timestamp(now))
    assert not selected.failures
    want = [DONE if text == "empty" else int(text) for text in expected.split()]
    assert [selected.chosen[GlobalId(flow.split("<-")[0])] for flow in flow_text.split()] == want


def test_input_since_past_view_upper_is_one_failure_and_seals() -> None:
    stored = storage("s1(141,200) m(90,100) s2(5,300) n(5,100)")
    selected = select_as_ofs(flows("m<-s1 n<-s2", stored), stored, Timestamp(250))
    assert list(selected.failures) == ["m"]
    assert "141" in selected.failures[GlobalId("m")]
    assert selected.chosen == {"m": 141, "n": 99}


def test_input_since_past_view_upper_through_an_index() -> None:
    stored = storage("s1(141,200) m(90,100)")
    selected = select_as_ofs(flows("i<-s1 m<-i", stored), stored, Timestamp(250))
    assert list(selected.failures) == ["m"]
    assert selected.chosen == {"i": 141, "m": 141}
