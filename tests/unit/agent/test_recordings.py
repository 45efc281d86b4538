"""Each number of a recording becomes a sample, once; what cannot be read is counted or refused."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from mcap.writer import CompressionType, Writer
from mcap_ros2.writer import Writer as Ros2Writer

from tensorguard.agent import mcap_messages
from tensorguard.agent.importer import COMMIT, ImportStopped, Waiting, import_file
from tensorguard.agent.leaves import MAX_DEPTH, MAX_LEAVES, MAX_LIST, leaves
from tensorguard.agent.mcap_messages import MAX_CHUNK, McapUnreadable
from tensorguard.agent.records import Priority
from tensorguard.agent.spool import Progress, Spool
from tensorguard.errors import NotFound

GO_ON = Waiting(Event(), delivers=True)
ROS2 = """std_msgs/Header header
string[] name
float64[] position
bool ok
uint8[] image
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
"""


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "spool.db", max_bytes=1 << 24) as made:
        yield made


def kept(spool: Spool) -> list[tuple[str, float, int]]:
    with spool.transaction() as db:
        rows = db.execute("SELECT body FROM sample ORDER BY priority, id").fetchall()
    read = [json.loads(body) for (body,) in rows]
    return [(one["name"], one["value"], one["ts"]) for one in read]


def json_file(
    path: Path, bodies: list[bytes], compression: CompressionType = CompressionType.ZSTD
) -> Path:
    with path.open("wb") as file:
        writer = Writer(file, compression=compression, chunk_size=4096)
        writer.start()
        schema = writer.register_schema("Angle", "jsonschema", b"{}")
        channel = writer.register_channel("/arm", "json", schema)
        for number, body in enumerate(bodies):
            writer.add_message(channel, number, body, number)
        writer.finish()
    return path


def test_leaves_are_numbers_with_their_paths() -> None:
    message = {
        "position": [0.5, -1],
        "joint": {"ok": True, "name": "elbow"},
        "nothing": None,
        "far": float("inf"),
        "huge": 10**400,
        "scan": list(range(MAX_LIST + 1)),
    }
    found, skipped = leaves(message, "/arm", lambda _: None)
    assert dict(found) == {"/arm.position.0": 0.5, "/arm.position.1": -1.0, "/arm.joint.ok": 1.0}
    assert skipped == 3
    assert leaves(4.5, "/arm", lambda _: None) == ([("/arm", 4.5)], 0)
    deep: object = 1
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    assert leaves(deep, "t", lambda _: None) == ([], 1)
    wide = {str(n): [1] * MAX_LIST for n in range(20)}
    found, skipped = leaves(wide, "t", lambda _: None)
    assert (len(found), len(found) + skipped) == (MAX_LEAVES, 20 * MAX_LIST)


@pytest.mark.parametrize("compression", [*CompressionType])
def test_json_messages(spool: Spool, tmp_path: Path, compression: CompressionType) -> None:
    bodies = [b'{"id":%d,"v":[1,2]}' % n for n in range(3000)]
    progress = import_file(json_file(tmp_path / "a.mcap", bodies, compression), spool, GO_ON)
    assert (progress.messages, progress.samples, progress.skipped) == (3000, 9000, 0)
    assert progress.finished
    found = kept(spool)
    assert [value for name, value, _ in found if name == "/arm.id"] == list(range(3000))
    assert found[:2] == [("/arm.id", 0.0, 0), ("/arm.v.0", 1.0, 0)]


def test_ros2_messages(spool: Spool, tmp_path: Path) -> None:
    with (tmp_path / "r.mcap").open("wb") as file:
        writer = Ros2Writer(file)
        schema = writer.register_msgdef("sensor_msgs/msg/JointState", ROS2)
        for number in range(5):
            writer.write_message(
                topic="/joints",
                schema=schema,
                log_time=1000 + number,
                publish_time=0,
                sequence=number,
                message={
                    "header": {"stamp": {"sec": 7, "nanosec": 8}, "frame_id": "base"},
                    "name": ["a", "b"],
                    "position": [0.25, number],
                    "ok": True,
                    "image": bytes(MAX_LIST + 1),
                },
            )
        writer.finish()
    progress = import_file(tmp_path / "r.mcap", spool, GO_ON)
    assert progress.messages == 5
    found = kept(spool)
    assert {(name, value) for name, value, at in found if at == 1003} == {
        ("/joints.header.stamp.sec", 7.0),
        ("/joints.header.stamp.nanosec", 8.0),
        ("/joints.position.0", 0.25),
        ("/joints.position.1", 3.0),
        ("/joints.ok", 1.0),
    }


def torque() -> tuple[descriptor_pb2.FileDescriptorSet, type]:
    """Return a schema and its class: numbers, a list, a map, an enum, an optional, a nested one."""
    files = descriptor_pb2.FileDescriptorSet()
    file = files.file.add(name="t.proto", package="t", syntax="proto3")
    inner = file.message_type.add(name="Inner")
    inner.field.add(name="w", number=1, type=1, label=1)
    made = file.message_type.add(name="Torque")
    made.field.add(name="nm", number=1, type=1, label=1)
    made.field.add(name="steps", number=2, type=3, label=3)
    made.field.add(name="name", number=3, type=9, label=1)
    made.field.add(name="raw", number=4, type=12, label=1)
    made.field.add(name="inner", number=5, type=11, label=1, type_name=".t.Inner")
    made.field.add(name="absent", number=6, type=11, label=1, type_name=".t.Inner")
    entry = made.nested_type.add(name="GainsEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=1, label=1)
    made.field.add(name="gains", number=7, type=11, label=3, type_name=".t.Torque.GainsEntry")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return files, message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Torque"))


def test_protobuf_messages(spool: Spool, tmp_path: Path) -> None:
    files, kind = torque()
    with (tmp_path / "p.mcap").open("wb") as file:
        writer = Writer(file)
        writer.start()
        schema = writer.register_schema("t.Torque", "protobuf", files.SerializeToString())
        channel = writer.register_channel("torque", "protobuf", schema)
        message = kind(nm=4.5, steps=[1, 2], name="x", raw=b"y", gains={"p": 0.5})
        message.inner.w = 3
        writer.add_message(channel, 9, message.SerializeToString(), 9)
        writer.add_message(channel, 10, b"\xff\xff\xff", 10)
        other = writer.register_channel("image", "h264", 0)
        writer.add_message(other, 11, b"...", 11)
        writer.finish()
    progress = import_file(tmp_path / "p.mcap", spool, GO_ON)
    assert (progress.messages, progress.skipped) == (3, 2)
    assert {(name, value) for name, value, _ in kept(spool)} == {
        ("torque.nm", 4.5),
        ("torque.steps.0", 1.0),
        ("torque.steps.1", 2.0),
        ("torque.inner.w", 3.0),
        ("torque.gains.p", 0.5),
    }


@pytest.mark.invariant("TG-I62")
def test_an_import_goes_on_where_its_last_commit_ended(spool: Spool, tmp_path: Path) -> None:
    path = json_file(tmp_path / "a.mcap", [b'{"id":%d}' % n for n in range(5 * COMMIT + 7)])

    class PowerCut(Exception):
        pass

    def cut(progress: Progress) -> None:
        if progress.messages >= 2 * COMMIT:
            raise PowerCut

    with pytest.raises(PowerCut):
        import_file(path, spool, GO_ON, cut)
    assert len(kept(spool)) == 2 * COMMIT
    seen: list[int] = []
    done = import_file(path, spool, GO_ON, lambda progress: seen.append(progress.messages))
    assert seen[0] == 3 * COMMIT
    assert (done.messages, done.samples) == (5 * COMMIT + 7, 5 * COMMIT + 7)
    assert [value for _, value, _ in kept(spool)] == list(range(5 * COMMIT + 7))
    assert import_file(path, spool, GO_ON) == done
    assert len(kept(spool)) == 5 * COMMIT + 7


def test_an_import_waits_for_room_and_drops_nothing(tmp_path: Path) -> None:
    path = json_file(tmp_path / "a.mcap", [b'{"id":%d}' % n for n in range(5000)])
    with Spool(tmp_path / "small.db", max_bytes=300_000) as spool:
        with pytest.raises(ImportStopped, match="half full"):
            import_file(path, spool, Waiting(Event(), delivers=False))
        assert spool.levels()[Priority.metrics].dropped == 0
        stop, values = Event(), []

        def deliver() -> None:
            while not stop.is_set():
                batch = spool.next_batch(rows=500, max_bytes=1 << 20)
                if batch is not None:
                    values.extend(one["value"] for one in json.loads(batch.body)["samples"])
                    spool.settle(batch, {})

        thread = Thread(target=deliver, daemon=True)
        thread.start()
        assert import_file(path, spool, GO_ON).finished
        while spool.waiting():
            stop.wait(0.01)
        stop.set()
        thread.join(10)
        assert spool.levels()[Priority.metrics].dropped == 0
        assert values == list(range(5000))


def test_an_import_that_is_told_to_stop_stops(tmp_path: Path) -> None:
    path = json_file(tmp_path / "a.mcap", [b'{"id":1}'] * 3000)
    stop = Event()
    stop.set()
    with Spool(tmp_path / "small.db", max_bytes=300_000) as spool:
        with pytest.raises(ImportStopped, match="told to stop"):
            import_file(path, spool, Waiting(stop, delivers=True))
        assert spool.levels()[Priority.metrics].dropped == 0


def test_a_spool_too_small_for_one_commit_is_named(tmp_path: Path) -> None:
    path = json_file(tmp_path / "a.mcap", [b'{"id":1}'] * 10)
    with Spool(tmp_path / "tiny.db", max_bytes=1000) as spool:
        with pytest.raises(ImportStopped, match="TG_AGENT_SPOOL_BYTES"):
            import_file(path, spool, GO_ON)
        assert spool.levels()[Priority.metrics].recorded == 0


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 2000, 5000])
def test_a_cut_file_gives_what_came_before_and_an_error(
    spool: Spool, tmp_path: Path, keep: int
) -> None:
    whole = json_file(tmp_path / "a.mcap", [b'{"id":%d}' % n for n in range(2000)])
    cut = tmp_path / "cut.mcap"
    cut.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(McapUnreadable):
        import_file(cut, spool, GO_ON)
    values = [value for _, value, _ in kept(spool)]
    assert values == list(range(len(values)))
    assert bool(values) == (keep >= 2000)


def test_damaged_files_are_refused_and_never_end_the_agent(spool: Spool, tmp_path: Path) -> None:
    whole = json_file(tmp_path / "a.mcap", [b'{"id":%d}' % n for n in range(500)]).read_bytes()
    refused = 0
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        try:
            for _ in mcap_messages.read(io.BytesIO(bytes(damaged)), after=0):
                pass
        except McapUnreadable:
            refused += 1
    assert refused > 20
    (tmp_path / "text").write_text("this is no recording")
    with pytest.raises(McapUnreadable):
        import_file(tmp_path / "text", spool, GO_ON)
    with pytest.raises(NotFound):
        import_file(tmp_path / "absent", spool, GO_ON)


@pytest.mark.parametrize("compression", [CompressionType.ZSTD, CompressionType.LZ4])
def test_a_chunk_that_unpacks_to_more_than_it_says_is_refused(
    tmp_path: Path, compression: CompressionType
) -> None:
    path = json_file(tmp_path / "a.mcap", [b'{"id":1}' + b" " * 100_000], compression)
    data = path.read_bytes()
    true_size = mcap_size(data)
    for lie in (10, MAX_CHUNK + 1, 2**63):
        wrong = data.replace(true_size.to_bytes(8, "little"), lie.to_bytes(8, "little"))
        assert wrong != data
        with pytest.raises(McapUnreadable):
            [*mcap_messages.read(io.BytesIO(wrong), after=0)]


def mcap_size(data: bytes) -> int:
    """Return the unpacked size that the first chunk declares."""
    from mcap.records import Chunk
    from mcap.stream_reader import StreamReader

    records = StreamReader(io.BytesIO(data), emit_chunks=True).records
    return next(one.uncompressed_size for one in records if isinstance(one, Chunk))
