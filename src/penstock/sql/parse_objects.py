"""CREATE, DROP, ALTER and COMMENT."""

from __future__ import annotations

from collections.abc import Callable

from sqlglot import exp

from penstock.runtime import SqlError
from penstock.sql.dialect import parse_expression
from penstock.sql.parse_query import query
from penstock.sql.reader import Reader
from penstock.sql.statements import (
    AlterCluster,
    ColumnDefinition,
    Comment,
    CreateCluster,
    CreateClusterReplica,
    CreateDatabase,
    CreateIndex,
    CreateMaterializedView,
    CreateRole,
    CreateSchema,
    CreateTable,
    CreateView,
    Drop,
    Name,
    ObjectType,
    Rename,
    Statement,
)
from penstock.sql.types import SqlType, type_named

_OBJECTS: dict[tuple[str, ...], ObjectType] = {
    ("MATERIALIZED", "VIEW"): ObjectType.MATERIALIZED_VIEW,
    ("CLUSTER", "REPLICA"): ObjectType.CLUSTER_REPLICA,
    ("CLUSTER",): ObjectType.CLUSTER,
    ("DATABASE",): ObjectType.DATABASE,
    ("SCHEMA",): ObjectType.SCHEMA,
    ("TABLE",): ObjectType.TABLE,
    ("VIEW",): ObjectType.VIEW,
    ("INDEX",): ObjectType.INDEX,
    ("SOURCE",): ObjectType.SOURCE,
    ("ROLE",): ObjectType.ROLE,
    ("USER",): ObjectType.ROLE,
}


def object_type(reader: Reader) -> ObjectType:
    """Take the words that name a kind of object."""
    for words, kind in _OBJECTS.items():
        if reader.accept(*words):
            return kind
    word = reader.word()
    if word.isalpha():
        raise reader.unsupported(f"the object type {word}")
    raise reader.error()


def create(reader: Reader) -> Statement:
    start = reader.mark()
    reader.expect("CREATE")
    or_replace = reader.accept("OR", "REPLACE")
    position = reader.position
    if reader.word() in ("TEMPORARY", "TEMP"):
        raise reader.unsupported("TEMPORARY", hint="Create an ordinary object and drop it when done.")
    default_index = reader.accept("DEFAULT")
    for words, rule in _CREATE.items():
        if reader.accept(*words):
            if or_replace and rule not in (_view, _materialized_view):
                raise reader.unsupported(
                    f"CREATE OR REPLACE {' '.join(words)}", hint="Drop it first.", position=position
                )
            if default_index and rule is not _index:
                raise reader.error()
            return rule(reader, start, or_replace or default_index)
    word = reader.word()
    if word.isalpha():
        raise reader.unsupported(f"CREATE {word}")
    raise reader.error()


def _begin(reader: Reader, start: int) -> dict[str, int]:
    return {"position": reader.tokens[0].start + 1}


def _if_not_exists(reader: Reader) -> bool:
    return reader.accept("IF", "NOT", "EXISTS")


def _table(reader: Reader, start: int, _: bool) -> CreateTable:
    if_not_exists = _if_not_exists(reader)
    name = reader.name()
    if reader.at("AS"):
        raise reader.unsupported("CREATE TABLE AS", hint="Create the table, then INSERT INTO it from a query.")
    if reader.at("FROM", "SOURCE"):
        raise reader.unsupported("CREATE TABLE FROM SOURCE")
    reader.expect("(")
    columns: tuple[ColumnDefinition, ...] = ()
    if not reader.accept(")"):
        columns = reader.list_until_close(lambda: _column(reader))
    seen: set[str] = set()
    for column in columns:
        if column.name.last in seen:
            raise SqlError(
                f'column "{column.name.last}" specified more than once',
                sqlstate="42701",
                position=column.name.position,
            )
        seen.add(column.name.last)
    if reader.at("WITH"):
        raise reader.unsupported("CREATE TABLE ... WITH (options)")
    return CreateTable(
        sql=reader.text_since(start), **_begin(reader, start), name=name, columns=columns,
        if_not_exists=if_not_exists,
    )  # fmt: skip


_CONSTRAINTS = {
    ("PRIMARY", "KEY"): "PRIMARY KEY",
    ("UNIQUE",): "UNIQUE",
    ("CHECK",): "CHECK",
    ("REFERENCES",): "REFERENCES",
    ("FOREIGN", "KEY"): "FOREIGN KEY",
    ("CONSTRAINT",): "CONSTRAINT",
    ("GENERATED",): "GENERATED",
    ("EXCLUDE",): "EXCLUDE",
    ("LIKE",): "LIKE",
}
_TYPE_ENDS = (
    (",",), ("NOT", "NULL"), ("NULL",), ("DEFAULT",), ("COLLATE",), *_CONSTRAINTS,
)  # fmt: skip


def _refuse_constraint(reader: Reader) -> None:
    for words, what in _CONSTRAINTS.items():
        if reader.at(*words):
            raise reader.unsupported(
                f"{what} constraint", hint="Penstock enforces types, NOT NULL and DEFAULT only; leave it out."
            )


def _column(reader: Reader) -> ColumnDefinition:
    if reader.word(1) in ("KEY", "(") or reader.at("CONSTRAINT"):
        _refuse_constraint(reader)
    position = reader.position
    name = Name((reader.identifier(),), position)
    kind = data_type(reader, *_TYPE_ENDS)
    nullable, default, default_sql = True, None, None
    while True:
        if reader.accept("NOT", "NULL"):
            nullable = False
        elif reader.accept("NULL"):
            nullable = True
        elif reader.accept("DEFAULT"):
            start = reader.mark()
            default = parse_expression(
                reader.until((",",), ("NOT", "NULL"), ("NULL",), *_CONSTRAINTS)
                if not reader.accept("NULL")
                else reader.since(start),
                reader.text,
            )
            default_sql = reader.text_since(start)
        elif reader.at("COLLATE"):
            raise reader.unsupported("COLLATE")
        else:
            _refuse_constraint(reader)
            return ColumnDefinition(name, kind, nullable, default, default_sql)


def data_type(reader: Reader, *ends: tuple[str, ...]) -> SqlType:
    """Take the name of a type, up to one of `ends`. Errors carry the position of the type."""
    position, start = reader.position, reader.mark()
    if not reader.until(*ends):
        raise reader.error(detail="Expected a type")
    text = reader.text_since(start)
    try:
        return type_named(text)
    except SqlError as error:
        if "serial" in text.lower():
            raise reader.unsupported(f"type {text}", hint="Use integer or bigint.", position=position) from None
        raise SqlError(error.message, sqlstate=error.sqlstate, hint=error.hint, position=position) from None


def _view_head(reader: Reader) -> tuple[bool, Name, tuple[Name, ...] | None]:
    if_not_exists = _if_not_exists(reader)
    name = reader.name()
    columns = reader.names_in_parentheses() if reader.at("(") else None
    return if_not_exists, name, columns


def _view(reader: Reader, start: int, or_replace: bool) -> CreateView:
    if_not_exists, name, columns = _view_head(reader)
    reader.expect("AS")
    body = query(reader)
    if body.as_of is not None:
        raise reader.unsupported("AS OF in a view", position=body.position)
    return CreateView(
        sql=reader.text_since(start), **_begin(reader, start), name=name, columns=columns, query=body,
        or_replace=or_replace, if_not_exists=if_not_exists,
    )  # fmt: skip


def _materialized_view(reader: Reader, start: int, or_replace: bool) -> CreateMaterializedView:
    if_not_exists, name, columns = _view_head(reader)
    cluster = _in_cluster(reader)
    if reader.at("WITH", "("):
        raise reader.unsupported("CREATE MATERIALIZED VIEW ... WITH (options)")
    reader.expect("AS")
    body = query(reader)
    if body.as_of is not None:
        raise reader.unsupported("AS OF in a materialized view", position=body.position)
    return CreateMaterializedView(
        sql=reader.text_since(start), **_begin(reader, start), name=name, columns=columns, query=body,
        cluster=cluster, or_replace=or_replace, if_not_exists=if_not_exists,
    )  # fmt: skip


def _in_cluster(reader: Reader) -> Name | None:
    return reader.name() if reader.accept("IN", "CLUSTER") else None


def _index(reader: Reader, start: int, default: bool) -> CreateIndex:
    if_not_exists = _if_not_exists(reader)
    name = None
    if not reader.at("IN", "CLUSTER") and not reader.at("ON"):
        name = reader.name()
    cluster = _in_cluster(reader)
    reader.expect("ON")
    on = reader.name()
    if reader.accept("USING") and not reader.accept("ARRANGEMENT"):
        raise reader.unsupported("this index method")
    key: tuple[exp.Expression, ...] | None = None
    if not default:
        reader.expect("(")
        key = reader.list_until_close(lambda: parse_expression(reader.until((",",)), reader.text))
    if cluster is None:
        cluster = _in_cluster(reader)
    if reader.at("WITH"):
        raise reader.unsupported("CREATE INDEX ... WITH (options)")
    return CreateIndex(
        sql=reader.text_since(start), **_begin(reader, start), name=name, on=on, key=key, cluster=cluster,
        if_not_exists=if_not_exists,
    )  # fmt: skip


def _options(reader: Reader, known: tuple[str, ...]) -> dict[str, str]:
    """``SIZE = 'x', REPLICATION FACTOR 2``, with or without parentheses."""
    found: dict[str, str] = {}
    parenthesised = reader.accept("(")
    while not reader.done and not reader.at(")"):
        position = reader.position
        for key in known:
            if reader.accept(*key.split()):
                break
        else:
            raise reader.unsupported(f"option {reader.word()}")
        if key in found:
            raise SqlError(f"{key} specified more than once", sqlstate="42601", position=position)
        reader.accept("=")
        if reader.at_string():
            found[key] = reader.string()
        elif reader.word().isdigit():
            found[key] = str(reader.integer())
        else:
            found[key] = reader.identifier()
        if not reader.accept(","):
            break
    if parenthesised:
        reader.expect(")")
    return found


_CLUSTER_OPTIONS = ("SIZE", "REPLICATION FACTOR", "MANAGED")


def _replication_factor(options: dict[str, str], position: int) -> int | None:
    text = options.get("REPLICATION FACTOR")
    if text is None:
        return None
    if not text.isdigit() or int(text) > 16:
        raise SqlError(f"REPLICATION FACTOR must be between 0 and 16, not {text}", sqlstate="22023", position=position)
    return int(text)


def _cluster(reader: Reader, start: int, _: bool) -> CreateCluster:
    name = reader.name()
    position = reader.position
    if reader.at("REPLICAS"):
        raise reader.unsupported("REPLICAS (...)", hint="Use SIZE and REPLICATION FACTOR.")
    options = _options(reader, _CLUSTER_OPTIONS)
    if options.pop("MANAGED", "true") != "true":
        raise reader.unsupported("an unmanaged cluster", hint="Use SIZE and REPLICATION FACTOR.")
    factor = _replication_factor(options, position)
    return CreateCluster(
        sql=reader.text_since(start), **_begin(reader, start), name=name, size=options.get("SIZE"),
        replication_factor=1 if factor is None else factor,
    )  # fmt: skip


def _cluster_replica(reader: Reader, start: int, _: bool) -> CreateClusterReplica:
    name = reader.name()
    if len(name.parts) != 2:
        raise SqlError("a replica is named cluster.replica", sqlstate="42601", position=name.position)
    options = _options(reader, ("SIZE",))
    return CreateClusterReplica(
        sql=reader.text_since(start), **_begin(reader, start), cluster=Name(name.parts[:1], name.position),
        name=Name(name.parts[1:], name.position), size=options.get("SIZE", "1"),
    )  # fmt: skip


def _named(kind: type[CreateSchema] | type[CreateDatabase] | type[CreateRole]) -> Callable[..., Statement]:
    def rule(reader: Reader, start: int, _: bool) -> Statement:
        if_not_exists = _if_not_exists(reader)
        name = reader.name()
        if not reader.done:
            raise reader.unsupported(f"option {reader.word()}")
        return kind(sql=reader.text_since(start), **_begin(reader, start), name=name, if_not_exists=if_not_exists)

    return rule


_CREATE: dict[tuple[str, ...], Callable[[Reader, int, bool], Statement]] = {
    ("TABLE",): _table,
    ("MATERIALIZED", "VIEW"): _materialized_view,
    ("VIEW",): _view,
    ("INDEX",): _index,
    ("CLUSTER", "REPLICA"): _cluster_replica,
    ("CLUSTER",): _cluster,
    ("SCHEMA",): _named(CreateSchema),
    ("DATABASE",): _named(CreateDatabase),
    ("ROLE",): _named(CreateRole),
}


def drop(reader: Reader) -> Drop:
    """DROP type [IF EXISTS] name, ... [CASCADE | RESTRICT]"""
    position, start = reader.position, reader.mark()
    reader.expect("DROP")
    kind = object_type(reader)
    if_exists = reader.accept("IF", "EXISTS")
    names = [reader.name()]
    while reader.accept(","):
        names.append(reader.name())
    cascade = reader.accept("CASCADE")
    if not cascade:
        reader.accept("RESTRICT")
    return Drop(
        sql=reader.text_since(start), position=position, object_type=kind, names=tuple(names),
        if_exists=if_exists, cascade=cascade,
    )  # fmt: skip


def alter(reader: Reader) -> Statement:
    """ALTER type name RENAME TO name, and ALTER CLUSTER name SET (...)"""
    position, start = reader.position, reader.mark()
    reader.expect("ALTER")
    kind = object_type(reader)
    if_exists = reader.accept("IF", "EXISTS")
    name = reader.name()
    if reader.accept("RENAME", "TO"):
        new_name = reader.name()
        if len(new_name.parts) != 1:
            raise SqlError("the new name must not be qualified", sqlstate="42601", position=new_name.position)
        reader.finish()
        return Rename(
            sql=reader.text_since(start), position=position, object_type=kind, name=name,
            new_name=new_name.last, if_exists=if_exists,
        )  # fmt: skip
    if kind is ObjectType.CLUSTER and reader.accept("SET"):
        options_at = reader.position
        options = _options(reader, ("SIZE", "REPLICATION FACTOR"))
        reader.finish()
        return AlterCluster(
            sql=reader.text_since(start), position=position, name=name, size=options.get("SIZE"),
            replication_factor=_replication_factor(options, options_at),
        )  # fmt: skip
    if reader.done:
        raise reader.error()
    raise reader.unsupported(f"ALTER {kind.value.upper()} ... {reader.word()}")


def comment(reader: Reader) -> Comment:
    """COMMENT ON type name IS 'text' | NULL"""
    position, start = reader.position, reader.mark()
    reader.expect("COMMENT", "ON")
    kind = ObjectType.COLUMN if reader.accept("COLUMN") else object_type(reader)
    name = reader.name()
    if kind is ObjectType.COLUMN and len(name.parts) < 2:
        raise SqlError("a column is named table.column", sqlstate="42601", position=name.position)
    reader.expect("IS")
    text = None if reader.accept("NULL") else reader.string()
    return Comment(sql=reader.text_since(start), position=position, object_type=kind, name=name, text=text)
