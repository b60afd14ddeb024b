"""What a replica keeps when a controller connects anew."""

from __future__ import annotations

from penstock.replica.reconciliation import Running, Wanted, kept
from penstock.runtime import Frontier


def running(description: bytes = b"d", compacted: int = 5, **changes: object) -> Running:
    values = {"exports": ("u1",), "indexes": (), "has_subscribe": False, **changes}
    return Running(description, Frontier(compacted), **values)


def wanted(id_: str = "u1", description: bytes = b"d", as_of: int = 5) -> Wanted:
    return Wanted(id_, description, Frontier(as_of))


def test_the_same_dataflow_is_kept() -> None:
    assert kept({"u1": running()}, [wanted(as_of=9)]) == {"u1"}


def test_another_plan_or_a_compacted_past_is_not() -> None:
    assert kept({"u1": running()}, [wanted(description=b"e")]) == set()
    assert kept({"u1": running(compacted=6)}, [wanted(as_of=5)]) == set()
    assert kept({"u1": running()}, [wanted("u2")]) == set()


def test_subscriptions_are_never_kept() -> None:
    assert kept({"u1": running(has_subscribe=True)}, [wanted()]) == set()


def test_an_importer_goes_with_its_index() -> None:
    importer = running(b"i", exports=("u2",), indexes=("u1",))
    both = {"u1": running(), "u2": importer}
    assert kept(both, [wanted(), wanted("u2", b"i")]) == {"u1", "u2"}
    assert kept(both, [wanted(description=b"changed"), wanted("u2", b"i")]) == set()
