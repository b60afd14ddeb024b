"""The command history: whatever was sent, a replay says the same in as few words as possible."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.control.history import CommandHistory
from penstock.replica import compute_pb2 as pb
from penstock.runtime import DONE


def create(id_: str, as_of: int, *exports: str) -> pb.Command:
    exports = exports or (id_,)
    return pb.Command(create_dataflow=pb.CreateDataflow(id=id_, description=id_.encode(), as_of=as_of, exports=exports))


def compact(id_: str, frontier: int) -> pb.Command:
    return pb.Command(allow_compaction=pb.AllowCompaction(id=id_, frontier=frontier))


def peek(uuid: bytes) -> pb.Command:
    return pb.Command(peek=pb.Peek(uuid=uuid, timestamp=1))


def history(*commands: pb.Command) -> CommandHistory:
    made = CommandHistory(pb.CreateInstance(txns_shard="s"))
    for command in commands:
        made.record(command)
    return made


def words(made: CommandHistory) -> list[str]:
    """Each command of a replay as ``kind subject time``."""
    result = []
    for command in made.replay():
        match command.WhichOneof("kind"):
            case "create_dataflow":
                result.append(f"create {command.create_dataflow.id} {command.create_dataflow.as_of}")
            case "allow_compaction":
                result.append(f"compact {command.allow_compaction.id} {command.allow_compaction.frontier}")
            case "peek":
                result.append(f"peek {command.peek.uuid.decode()}")
            case "schedule":
                result.append(f"schedule {command.schedule.id}")
            case "allow_writes":
                result.append(f"write {command.allow_writes.id}")
            case kind:
                result.append(str(kind))
    return result


def test_compaction_becomes_the_as_of() -> None:
    made = history(create("u1", 5), compact("u1", 9), compact("u1", 7))
    assert words(made) == ["create_instance", "create u1 9"]


def test_the_last_settings_come_before_what_they_may_change() -> None:
    settings = [pb.Command(configure=pb.Configure(bypass_committer=bypass)) for bypass in (False, True)]
    made = history(settings[0], create("u1", 5), settings[1])
    assert words(made) == ["create_instance", "configure", "create u1 5"]
    assert made.replay()[1] == settings[1]


def test_an_as_of_follows_the_slowest_export() -> None:
    made = history(create("u1", 5, "u1", "u2"), compact("u1", 9))
    assert words(made) == ["create_instance", "create u1 5", "compact u1 9"]
    made.record(compact("u2", 8))
    assert words(made) == ["create_instance", "create u1 8", "compact u1 9"]


def test_dropped_flows_and_finished_peeks_vanish() -> None:
    made = history(
        create("u1", 5),
        create("u2", 5),
        pb.Command(schedule=pb.Schedule(id="u1")),
        pb.Command(schedule=pb.Schedule(id="u2")),
        peek(b"a"),
        peek(b"b"),
        pb.Command(cancel_peek=pb.CancelPeek(uuid=b"a")),
        compact("u1", DONE),
    )
    assert words(made) == ["create_instance", "create u2 5", "schedule u2", "peek b"]
    made.forget_peek(b"b")
    made.record(compact("u2", DONE))
    assert len(made) == 0


def test_order_of_a_replay() -> None:
    made = history(
        create("u1", 5, "u1", "u9"),
        pb.Command(allow_writes=pb.AllowWrites(id="u9")),
        pb.Command(initialization_complete=pb.InitializationComplete()),
        compact("u9", 6),
        peek(b"a"),
        create("u2", 6),
        pb.Command(schedule=pb.Schedule(id="u1")),
    )
    assert words(made) == [
        "create_instance",
        "create u1 5",
        "create u2 6",
        "schedule u1",
        "peek a",
        "compact u9 6",
        "initialization_complete",
        "write u9",
    ]


IDS = st.sampled_from(["u1", "u2", "u3"])
COMMANDS = st.one_of(
    st.builds(lambda i: pb.Command(schedule=pb.Schedule(id=i)), IDS),
    st.builds(lambda i: pb.Command(allow_writes=pb.AllowWrites(id=i)), IDS),
    st.builds(compact, IDS, st.sampled_from([6, 7, 8, DONE])),
    st.builds(peek, st.sampled_from([b"a", b"b"])),
    st.builds(lambda u: pb.Command(cancel_peek=pb.CancelPeek(uuid=u)), st.sampled_from([b"a", b"b"])),
)


@given(st.lists(COMMANDS, max_size=30))
def test_replaying_a_replay_changes_nothing(commands: list[pb.Command]) -> None:
    made = history(create("u1", 5, "u1", "u2"), create("u3", 6), *commands)
    replayed = made.replay()
    again = history(*(c for c in replayed if c.WhichOneof("kind") != "create_instance"))
    assert again.replay() == replayed
