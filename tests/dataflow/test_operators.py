"""Every operator against the slow reference: retractions, NULLs, duplicates, errors, many times per bundle."""

from __future__ import annotations

import math
from collections import Counter
from decimal import Decimal, getcontext
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.dataflow import (
    ERRORS_SCHEMA,
    Aggregate,
    BatchResult,
    Collection,
    Dataflow,
    Function,
    SortKey,
    anti_join,
    constant,
    cross_join,
    distinct,
    full_join,
    join,
    left_join,
    map_filter,
    negate,
    project,
    reduce,
    right_join,
    semi_join,
    temporal_filter,
    top_k,
    union,
)
from tests.dataflow.oracle import TIMES, Contents, History, Row, check, contents, histories, normal, run

KV = pa.schema([("k", pa.int64()), ("s", pa.string()), ("v", pa.int64())])
WIDE = pa.schema([("j", pa.int64()), ("t", pa.string())])

KEYS = st.sampled_from([None, 0, 1, 2])
TEXTS = st.sampled_from([None, "", "a", "same first eight 1", "same first eight 2", "same first eigh"])
VALUES = st.sampled_from([None, 0, 1, -5, 7, 2**62, 2**63 - 1, -(2**63)])
ROWS = st.tuples(KEYS, TEXTS, VALUES)
WIDE_ROWS = st.tuples(KEYS, TEXTS)

examples = settings(max_examples=50, deadline=None)


def ok(rows: Contents) -> tuple[Contents, Contents]:
    return Counter({row: n for row, n in rows.items() if n}), Counter()


def failure(sqlstate: str, message: str) -> Row:
    return (sqlstate, message)


def key_text(names: list[str], values: Row) -> str:
    return "(" + ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True)) + ")"


# linear operators


def doubled_or_failed(rows: pa.RecordBatch) -> BatchResult:
    """v * 2 where v is small, an error where it is huge, nothing where it is NULL."""
    values = rows.column(2)
    small = pc.fill_null(pc.less(pc.abs(pc.fill_null(pc.divide(values, 2), 0)), 2**40), False)
    present = values.is_valid().to_numpy(zero_copy_only=False)
    good = np.flatnonzero(small.to_numpy(zero_copy_only=False) & present)
    bad = np.flatnonzero(~small.to_numpy(zero_copy_only=False) & present)
    results = pa.RecordBatch.from_arrays(
        [rows.column(0).take(pa.array(good)), pc.multiply(values.take(pa.array(good)), 2)], schema=DOUBLED
    )
    texts = [f"too large: {values[int(i)].as_py()}" for i in bad]
    errors = pa.RecordBatch.from_arrays(
        [pa.array(["22003"] * len(bad), pa.string()), pa.array(texts, pa.string())], schema=ERRORS_SCHEMA
    )
    return BatchResult(results, good, errors, bad)


DOUBLED = pa.schema([("k", pa.int64()), ("w", pa.int64())])


@examples
@given(histories([ROWS], valid=False))
def test_map_filter_sends_failing_rows_to_the_errors(history: History) -> None:
    def model(inputs: list[Contents]) -> tuple[Contents, Contents]:
        oks: Contents = Counter()
        errs: Contents = Counter()
        for (k, _, v), n in inputs[0].items():
            if v is None:
                continue
            if abs(v) // 2 >= 2**40:
                errs[failure("22003", f"too large: {v}")] += n
            else:
                oks[k, v * 2] += n
        return ok(oks)[0], ok(errs)[0]

    check(lambda _, c: map_filter(c[0], doubled_or_failed, DOUBLED), model, [KV], history)


@examples
@given(histories([WIDE_ROWS, WIDE_ROWS], valid=False))
def test_union_negate_and_project(history: History) -> None:
    def build(_: Dataflow, c: list[Collection]) -> Collection:
        return project(union([c[0], negate(c[1]), c[0]]), [1, 0])

    def model(inputs: list[Contents]) -> tuple[Contents, Contents]:
        total: Contents = Counter()
        for (j, t), n in inputs[0].items():
            total[t, j] += 2 * n
        for (j, t), n in inputs[1].items():
            total[t, j] -= n
        return ok(total)

    check(build, model, [WIDE, WIDE], history)


@examples
@given(histories([WIDE_ROWS]), st.integers(0, 5))
def test_a_constant_is_there_from_as_of_on(history: History, as_of: int) -> None:
    rows = pa.RecordBatch.from_arrays([pa.array([9, 9]), pa.array(["x", "x"])], schema=WIDE)

    def model(inputs: list[Contents]) -> tuple[Contents, Contents]:
        return ok(inputs[0] + Counter({(9, "x"): 2}))

    check(lambda d, c: union([c[0], constant(d, rows)]), model, [WIDE], history, as_of=as_of)


INTERVALS = pa.schema([("lo", pa.int64()), ("hi", pa.int64()), ("x", pa.int64())])
BOUNDS = st.one_of(st.none(), st.integers(-2, 12))


@examples
@given(
    histories([st.tuples(BOUNDS, BOUNDS, st.integers(0, 1))], valid=False),
    st.sampled_from([(0, 1), (0, None), (None, 1)]),
    st.integers(0, 5),
)
def test_temporal_filter(history: History, bounds: tuple[int | None, int | None], as_of: int) -> None:
    for time in range(as_of, 10):

        def model(inputs: list[Contents], time: int = time) -> tuple[Contents, Contents]:
            valid: Contents = Counter()
            for (lo, hi, x), n in inputs[0].items():
                lower, upper = (lo if bounds[0] is not None else -1), (hi if bounds[1] is not None else 99)
                if lower is not None and upper is not None and lower <= time < upper:
                    valid[(x,)] += n
            return ok(valid)

        check_at(lambda _, c: temporal_filter(c[0], *bounds, columns=[2]), model, [INTERVALS], history, time, as_of)


def check_at(build: Any, model: Any, schemas: list[pa.Schema], history: History, time: int, as_of: int) -> None:
    output, _ = run(build, schemas, history, as_of=as_of)
    now = [contents([(r, t, d) for s, r, t, d in history.changes if s == i], time) for i in range(len(schemas))]
    assert output.at(time) == model(now)


# joins


def inner(
    left: Contents, right: Contents, lk: list[int], rk: list[int], *, nulls: bool = False, passes: Any = None
) -> Contents:
    total: Contents = Counter()
    for a, n in left.items():
        for b, m in right.items():
            ka, kb = [a[i] for i in lk], [b[i] for i in rk]
            if ka == kb and (nulls or None not in ka) and (passes is None or passes(a + b)):
                total[a + b] += n * m
    return total


def matched(left: Contents, pairs: Contents, start: int, stop: int) -> set[Row]:
    return {row[start:stop] for row in pairs if pairs[row]}


@examples
@given(
    histories([ROWS, WIDE_ROWS], valid=False),
    st.sampled_from([([0], [0]), ([1], [1]), ([0, 1], [0, 1]), ([], [])]),
    st.booleans(),
)
def test_inner_join(history: History, keys: tuple[list[int], list[int]], nulls: bool) -> None:
    check(
        lambda _, c: join(c[0], c[1], *keys, null_equals_null=nulls),
        lambda i: ok(inner(i[0], i[1], *keys, nulls=nulls)),
        [KV, WIDE],
        history,
    )


@examples
@given(histories([WIDE_ROWS, WIDE_ROWS]))
def test_joins_share_arrangements_and_prune_columns(history: History) -> None:
    def build(_: Dataflow, c: list[Collection]) -> Collection:
        ab = join(c[0], c[1], [0], [0], columns=[3, 0])
        aa = join(c[0], c[0], [0], [0], columns=[3, 0])
        return union([ab, aa])

    def model(i: list[Contents]) -> tuple[Contents, Contents]:
        total: Contents = Counter()
        for pairs in (inner(i[0], i[1], [0], [0]), inner(i[0], i[0], [0], [0])):
            for row, n in pairs.items():
                total[row[3], row[0]] += n
        return ok(total)

    check(build, model, [WIDE, WIDE], history)


def texts_differ(rows: pa.RecordBatch) -> BatchResult:
    """Pairs of (j, t) rows whose texts differ, as a residual condition; NULL does not pass."""
    mask = pc.fill_null(pc.not_equal(rows.column(1), rows.column(3)), False).to_numpy(zero_copy_only=False)
    kept = np.flatnonzero(mask)
    return BatchResult(rows.take(pa.array(kept)), kept)


def passes_texts_differ(row: Row) -> bool:
    return row[1] is not None and row[3] is not None and row[1] != row[3]


PASSING_NULL = [(0, (None, None), 0, 1), (0, (None, None), 0, -1)]
MOSTLY_NULL_KEYS = History(
    [
        *PASSING_NULL * 2,
        (1, (None, None), 2, 1),
        *PASSING_NULL,
        (1, (0, None), 0, 1),
        (1, (0, None), 1, -1),
        *PASSING_NULL * 2,
        (1, (1, None), 1, 1),
        (1, (1, None), 2, -1),
        (1, (0, None), 0, 1),
        (1, (None, None), 0, 1),
        (1, (None, None), 1, -1),
        (0, (None, None), 0, 1),
    ],
    cuts=[17],
)
"""So many that they are sorted as they arrive; what is left of them without NULL keys is nothing."""


@examples
@example(MOSTLY_NULL_KEYS, "left", False, False)
@given(
    histories([WIDE_ROWS, WIDE_ROWS]),
    st.sampled_from(["left", "right", "full", "semi", "anti"]),
    st.booleans(),
    st.booleans(),
)
def test_outer_semi_and_anti_joins(history: History, kind: str, nulls: bool, with_residual: bool) -> None:
    functions = {"left": left_join, "right": right_join, "full": full_join, "semi": semi_join, "anti": anti_join}
    residual = texts_differ if with_residual else None

    def model(i: list[Contents]) -> tuple[Contents, Contents]:
        pairs = inner(i[0], i[1], [0], [0], nulls=nulls, passes=passes_texts_differ if with_residual else None)
        left_matched, right_matched = matched(i[0], pairs, 0, 2), matched(i[1], pairs, 2, 4)
        if kind in ("semi", "anti"):
            return ok(Counter({r: n for r, n in i[0].items() if (r in left_matched) == (kind == "semi")}))
        total = Counter(pairs)
        if kind in ("left", "full"):
            total.update({(*r, None, None): n for r, n in i[0].items() if r not in left_matched})
        if kind in ("right", "full"):
            total.update({(None, None, *r): n for r, n in i[1].items() if r not in right_matched})
        return ok(total)

    check(
        lambda _, c: functions[kind](c[0], c[1], [0], [0], null_equals_null=nulls, residual=residual),
        model,
        [WIDE, WIDE],
        history,
    )


@examples
@given(histories([WIDE_ROWS, WIDE_ROWS]))
def test_cross_join(history: History) -> None:
    check(lambda _, c: cross_join(c[0], c[1]), lambda i: ok(inner(i[0], i[1], [], [])), [WIDE, WIDE], history)


def test_join_refuses_keys_of_different_types() -> None:
    dataflow = Dataflow("test", 0)  # type: ignore[arg-type]
    _, left = dataflow.input("l", KV)
    _, right = dataflow.input("r", WIDE)
    with pytest.raises(ValueError, match="int64 with one of type string"):
        join(left, right, [0], [1])


# reductions


@examples
@given(histories([WIDE_ROWS], valid=False))
def test_distinct(history: History) -> None:
    def model(i: list[Contents]) -> tuple[Contents, Contents]:
        errs = {
            failure("XX000", f"distinct: a negative number of rows for key {key_text(['j', 't'], r)}"): 1
            for r, n in i[0].items()
            if n < 0
        }
        return Counter({r: 1 for r, n in i[0].items() if n > 0}), Counter(errs)

    check(lambda _, c: distinct(c[0]), model, [WIDE], history)


AGGREGATES = [
    Aggregate(Function.COUNT),
    Aggregate(Function.COUNT, 2),
    Aggregate(Function.SUM, 2),
    Aggregate(Function.SUM, 2, distinct=True),
    Aggregate(Function.COUNT, 1, distinct=True),
    Aggregate(Function.COUNT, 2, distinct=True),
    Aggregate(Function.MIN, 1),
    Aggregate(Function.MAX, 2),
    Aggregate(Function.MAX, 1),
    Aggregate(Function.SUM, 2, output=pa.int64()),
]


def aggregate_of(aggregate: Aggregate, rows: Contents) -> Any:
    values: list[Any] = []
    for row, n in rows.items():
        value = row[aggregate.column] if aggregate.column is not None else 1
        if value is not None:
            values.extend([value] * n)
    if aggregate.distinct:
        values = list(set(values))
    match aggregate.function:
        case Function.COUNT:
            return len(values)
        case Function.SUM:
            return sum(values) if values else None
        case Function.MIN:
            return min(values, default=None)
        case Function.MAX:
            return max(values, default=None)
        case Function.BOOL_AND:
            return all(values) if values else None
        case Function.BOOL_OR:
            return any(values) if values else None


@examples
@given(
    histories([ROWS]),
    st.sampled_from([[], [0], [1], [0, 1]]),
    st.lists(st.sampled_from(AGGREGATES), max_size=4, unique=True),
)
def test_reduce(history: History, key: list[int], aggregates: list[Aggregate]) -> None:
    def model(i: list[Contents]) -> tuple[Contents, Contents]:
        groups: dict[Row, Contents] = {}
        for row, n in i[0].items():
            groups.setdefault(tuple(row[k] for k in key), Counter())[row] += n
        oks: Contents = Counter()
        errs: Contents = Counter()
        for group, rows in groups.items():
            values = [aggregate_of(a, rows) for a in aggregates]
            for a, v in zip(aggregates, values, strict=True):
                if a.output == pa.int64() and v is not None and not -(2**63) <= v < 2**63:
                    name = key_text([KV.names[k] for k in key], group)
                    errs[failure("22003", f"reduce: sum out of range for key {name}")] += 1
                    break
            else:
                oks[group + tuple(values)] += 1
        if errs:
            return oks, errs
        return oks, errs

    check_rows_unless_errors(lambda _, c: reduce(c[0], key, aggregates), model, [KV], history)


def check_rows_unless_errors(build: Any, model: Any, schemas: list[pa.Schema], history: History) -> None:
    """Like `check`; where the model has errors, rows are not compared: a read would answer with an error."""
    output, _ = run(build, schemas, history)
    for time in range(TIMES + 2):
        now = [contents([(r, t, d) for s, r, t, d in history.changes if s == i], time) for i in range(len(schemas))]
        oks, errs = model(now)
        got_oks, got_errs = output.at(time)
        assert got_errs == errs
        if not errs:
            assert got_oks == oks


@examples
@given(histories([ROWS], valid=False))
def test_a_negative_group_is_an_error_that_goes_away(history: History) -> None:
    def model(i: list[Contents]) -> tuple[Contents, Contents]:
        counts: dict[Any, int] = {}
        for row, n in i[0].items():
            counts[row[0]] = counts.get(row[0], 0) + n
        errs = {
            failure("XX000", f"reduce: a negative number of rows for key (k={k})"): 1
            for k, n in counts.items()
            if n < 0
        }
        return Counter({(k, n): 1 for k, n in counts.items() if n > 0}), Counter(errs)

    check(lambda _, c: reduce(c[0], [0], [Aggregate(Function.COUNT)]), model, [KV], history)


TYPED = pa.schema(
    [
        ("k", pa.int32()),
        ("i2", pa.int16()),
        ("d9", pa.decimal128(9, 2)),
        ("d38", pa.decimal128(38, 0)),
        ("f4", pa.float32()),
        ("f8", pa.float64()),
        ("b", pa.bool_()),
        ("day", pa.date32()),
    ]
)
getcontext().prec = 80  # Python rounds to 28 digits unless told otherwise
BIG = Decimal(10**38 - 1)
TYPED_ROWS = st.tuples(
    st.integers(0, 1),
    st.one_of(st.none(), st.integers(-(2**15), 2**15 - 1)),
    st.one_of(st.none(), st.sampled_from([Decimal("1.25"), Decimal("-9999999.99"), Decimal("0.01")])),
    st.one_of(st.none(), st.sampled_from([BIG, -BIG, Decimal(1), Decimal(-1), Decimal(2**64), Decimal(-(2**96))])),
    st.one_of(st.none(), st.sampled_from([0.5, -1.5, 1e30, -0.0, math.inf, 0.1])),
    st.one_of(st.none(), st.floats(allow_nan=True), st.sampled_from([0.1, 1e16, -1e16, 1.0, math.inf, -math.inf])),
    st.one_of(st.none(), st.booleans()),
    st.one_of(st.none(), st.dates()),
)


def float_sum(values: list[float]) -> float | str:
    if any(math.isnan(v) for v in values) or {math.inf, -math.inf} <= set(values):
        return "NaN"
    if math.inf in values or -math.inf in values:
        return math.inf if math.inf in values else -math.inf
    try:
        return math.fsum(values) + 0.0
    except OverflowError:
        from fractions import Fraction

        return math.inf if sum(map(Fraction, values)) > 0 else -math.inf


@settings(max_examples=30, deadline=None)
@given(histories([TYPED_ROWS]))
def test_aggregates_of_every_type_are_exact(history: History) -> None:
    aggregates = [
        *(Aggregate(Function.SUM, i, name=f"sum{i}") for i in (1, 2, 3, 4, 5)),
        *(Aggregate(f, 6) for f in (Function.BOOL_AND, Function.BOOL_OR)),
        *(Aggregate(f, i) for f, i in zip((Function.MIN, Function.MAX) * 2, (2, 3, 6, 7), strict=True)),
    ]

    def model(i: list[Contents]) -> tuple[Contents, Contents]:
        oks: Contents = Counter()
        errs: Contents = Counter()
        for k in {row[0] for row in i[0]}:
            rows = Counter({row: n for row, n in i[0].items() if row[0] == k})
            out: list[Any] = [k]
            for a in aggregates:
                if a.function is Function.SUM and a.column in (4, 5):
                    values = [
                        math.nan if row[a.column] == "NaN" else row[a.column]
                        for row, n in rows.items()
                        for _ in range(n)
                        if row[a.column] is not None
                    ]
                    total = float_sum([float(np.float32(v)) if a.column == 4 else v for v in values])
                    with np.errstate(over="ignore"):
                        total = float(np.float32(total)) if a.column == 4 and total != "NaN" else total
                    out.append(total if values else None)
                else:
                    out.append(aggregate_of(a, rows))
            if out[3] is not None and abs(out[3]) > BIG:
                errs[failure("22003", f"reduce: sum3 out of range for key (k={k})")] += 1
            else:
                oks[tuple(normal(v) for v in out)] += 1
        return oks, errs

    output, _ = run(lambda _, c: reduce(c[0], [0], aggregates), [TYPED], history)
    for time in range(TIMES + 2):
        now = contents([(tuple(map(normal, r)), t, d) for _, r, t, d in history.changes], time)
        oks, errs = model([now])
        got_oks, got_errs = output.at(time)
        assert got_errs == errs
        if not errs:
            assert {tuple(map(normal, row)) for row in got_oks} == set(oks)


# top k


def ordered(rows: Contents, order: list[SortKey]) -> list[Row]:
    from functools import cmp_to_key

    def compare(a: Row, b: Row) -> int:
        for key in order:
            x, y = a[key.column], b[key.column]
            if x == y:
                continue
            if x is None or y is None:
                return -1 if (x is None) == key.nulls_go_first else 1
            x, y = (v.encode() if isinstance(v, str) else v for v in (x, y))
            return -1 if (x < y) != key.descending else 1
        return 0

    return sorted((row for row, n in rows.items() for _ in range(n)), key=cmp_to_key(compare))


@examples
@given(
    histories([ROWS]),
    st.sampled_from([[], [0], [0, 1]]),
    st.lists(
        st.builds(SortKey, st.sampled_from([0, 1, 2]), st.booleans(), st.sampled_from([None, True, False])),
        max_size=3,
        unique_by=lambda key: key.column,
    ),
    st.sampled_from([None, 0, 1, 2, 4]),
    st.sampled_from([0, 0, 1, 3]),
)
def test_top_k(history: History, group: list[int], order: list[SortKey], limit: int | None, offset: int) -> None:
    """Where the order leaves ties, any of the tied rows will do, but always the same: see the next test."""
    output, _ = run(lambda _, c: top_k(c[0], group, order, limit, offset), [KV], history)
    for time in range(TIMES + 2):
        now = contents([(r, t, d) for _, r, t, d in history.changes], time)
        got, errs = output.at(time)
        assert not errs
        groups: dict[Row, Contents] = {}
        for row, n in now.items():
            groups.setdefault(tuple(row[i] for i in group), Counter())[row] += n
        for key, rows in groups.items():
            mine = Counter({row: n for row, n in got.items() if tuple(row[i] for i in group) == key})
            assert not mine - rows, "a row that is not there, or too often"
            stop = None if limit is None else offset + limit
            expected = ordered(rows, order)[offset:stop]
            found = ordered(mine, order)
            columns = [key.column for key in order]
            assert [[r[c] for c in columns] for r in found] == [[r[c] for c in columns] for r in expected]
        assert sum(got.values()) == sum(
            len(ordered(rows, order)[offset : None if limit is None else offset + limit]) for rows in groups.values()
        )


@examples
@given(histories([ROWS]), st.data())
def test_top_k_does_not_depend_on_batches(history: History, data: st.DataObject) -> None:
    other = History(data.draw(st.permutations(history.changes)), data.draw(st.lists(st.integers(0, 20), max_size=8)))
    order = [SortKey(1)]
    first, second = (run(lambda _, c: top_k(c[0], [0], order, 2, 1), [KV], h)[0] for h in (history, other))
    for time in range(TIMES + 2):
        assert first.at(time) == second.at(time)


@examples
@given(histories([ROWS], valid=False))
def test_min_of_a_contradictory_group_is_an_error(history: History) -> None:
    output, _ = run(lambda _, c: reduce(c[0], [0], [Aggregate(Function.MIN, 2)]), [KV], history)
    for time in range(TIMES + 2):
        now = contents([((r[0], r[2]), t, d) for _, r, t, d in history.changes], time)
        oks, errs = output.at(time)
        expected: Contents = Counter()
        broken: set[Any] = set()
        for k in {row[0] for row in now}:
            for row in ordered(Counter({r: abs(n) for r, n in now.items() if r[0] == k}), [SortKey(1)]):
                if now[row] < 0:
                    broken.add(k)
                else:
                    expected[row] += 1
                    break
        assert errs == Counter({failure("XX000", f"min: a negative number of rows for key (k={k})"): 1 for k in broken})
        if not broken:
            assert oks == expected


def test_a_group_too_large_to_sum_is_an_error_and_can_still_be_counted() -> None:
    history = History([(0, (1, None, 1), 0, 2**29), (0, (1, None, 1), 1, 1), (0, (1, None, 1), 2, -1)], [])
    summed, _ = run(lambda _, c: reduce(c[0], [0], [Aggregate(Function.SUM, 2)]), [KV], history)
    assert summed.at(0) == ok(Counter({(1, Decimal(2**29)): 1}))
    text = f"reduce: more than {2**29} rows for key (k=1)"
    assert summed.at(1) == (Counter(), Counter({failure("54000", text): 1}))
    assert summed.at(2) == ok(Counter({(1, Decimal(2**29)): 1}))
    counted, _ = run(lambda _, c: reduce(c[0], [0], [Aggregate(Function.COUNT)]), [KV], history)
    assert counted.at(1) == ok(Counter({(1, 2**29 + 1): 1}))
