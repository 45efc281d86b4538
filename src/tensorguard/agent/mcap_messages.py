"""Messages of an MCAP file in the order of the file, as numbers: JSON, protobuf and ROS 2 (CDR).

A file is a stranger's: record and chunk sizes are limited before anything is unpacked. A message
that cannot be decoded is skipped and counted; a file that cannot be read on ends with an error.
Needs the extra `mcap`; `importer` says so when it is missing.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import IO, Final

import lz4.frame
import msgspec
import zstandard
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtobufMessage
from mcap.exceptions import McapError
from mcap.records import Channel, Chunk, McapRecord, Message, Schema
from mcap.stream_reader import CRCValidationError, StreamReader, breakup_chunk
from mcap_protobuf.decoder import DecoderFactory as ProtobufFactory
from mcap_ros2.decoder import DecoderFactory as Ros2Factory

from tensorguard.agent.leaves import MAX_LIST, Leaf, leaves
from tensorguard.errors import MalformedInput

MAX_RECORD: Final = 64 << 20  # bytes of one record, packed
MAX_CHUNK: Final = 128 << 20  # bytes of one chunk, unpacked; writers make chunks of about 1 MiB
JSON: Final = "json"

Decode = Callable[[bytes], object]

UNDECODABLE: Final = (  # what the decoders raise on bytes that do not fit their schema
    *(AttributeError, IndexError, KeyError, NotImplementedError, OverflowError, RecursionError),
    *(TypeError, ValueError, struct.error, DecodeError, McapError, msgspec.DecodeError),
)
UNREADABLE: Final = (
    *(McapError, CRCValidationError, struct.error, ValueError, KeyError),
    *(zlib.error, zstandard.ZstdError, RuntimeError, EOFError),
)


class McapUnreadable(MalformedInput):
    code = "mcap_unreadable"
    remedy = "Repair the file (`mcap recover`) and import it again; what came before is spooled."


@dataclass(frozen=True, slots=True)
class Numbers:
    """One message: its time, its numbers, and how many values or messages were left out."""

    log_time: int
    leaves: list[Leaf]
    skipped: int


def read(file: IO[bytes], *, after: int) -> Iterator[Numbers]:
    """Yield the messages of a file but the first `after`. Raises `McapUnreadable`."""
    channels = _Channels()
    seen = 0
    try:
        for record in _records(file):
            if isinstance(record, Message):
                seen += 1
                if seen > after:
                    yield channels.numbers(record)
            else:
                channels.learn(record)
    except UNREADABLE as error:
        raise McapUnreadable(f"the file cannot be read after message {seen}: {error}") from error


def _records(file: IO[bytes]) -> Iterator[McapRecord]:
    reader = StreamReader(file, emit_chunks=True, record_size_limit=MAX_RECORD)
    for record in reader.records:
        if isinstance(record, Chunk):
            yield from breakup_chunk(_unpacked(record), validate_crc=True)
        elif isinstance(record, Schema | Channel | Message):
            yield record


def _unpacked(chunk: Chunk) -> Chunk:
    if chunk.uncompressed_size > MAX_CHUNK:
        raise ValueError(f"a chunk has over {MAX_CHUNK} bytes")
    size = chunk.uncompressed_size
    if chunk.compression == "zstd":
        with zstandard.ZstdDecompressor().stream_reader(chunk.data) as stream:
            data = stream.read(size + 1)
    elif chunk.compression == "lz4":
        data = lz4.frame.LZ4FrameDecompressor().decompress(chunk.data, max_length=size + 1)
    else:
        return chunk
    if len(data) != size:
        raise ValueError("a chunk has another size than it says")
    return replace(chunk, compression="", data=data)


class _Channels:
    """The topics of a file and how their messages are decoded."""

    def __init__(self) -> None:
        self._schemas: dict[int, Schema] = {}
        self._channels: dict[int, Channel] = {}
        self._decoders: dict[int, Decode | None] = {}
        self._factories = (ProtobufFactory(), Ros2Factory())

    def learn(self, record: McapRecord) -> None:
        if isinstance(record, Schema):
            self._schemas[record.id] = record
        elif isinstance(record, Channel):
            self._channels[record.id] = record

    def numbers(self, message: Message) -> Numbers:
        """Return the numbers of a message; none, and one skipped, if it cannot be decoded."""
        channel = self._channels[message.channel_id]
        try:
            if channel.id not in self._decoders:
                self._decoders[channel.id] = self._decoder(channel)
            decode = self._decoders[channel.id]
            if decode is None:
                return Numbers(message.log_time, [], 1)
            found, skipped = leaves(decode(message.data), channel.topic, _fields)
        except UNDECODABLE:
            return Numbers(message.log_time, [], 1)
        return Numbers(message.log_time, found, skipped)

    def _decoder(self, channel: Channel) -> Decode | None:
        if channel.message_encoding == JSON:
            return msgspec.json.decode
        schema = self._schemas.get(channel.schema_id)
        for factory in self._factories:
            decode = factory.decoder_for(channel.message_encoding, schema)
            if decode is not None:
                return decode
        return None


def _fields(value: object) -> Mapping[str, object] | None:
    if isinstance(value, ProtobufMessage):
        return dict(_protobuf(value))
    if isinstance(value, SimpleNamespace):  # what mcap_ros2 makes of a message
        return {name: getattr(value, name) for name in getattr(type(value), "__slots__", ())}
    return None


def _protobuf(message: ProtobufMessage) -> Iterator[tuple[str, object]]:
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            entry = field.message_type
            is_map = entry is not None and entry.GetOptions().map_entry
            yield field.name, dict(value) if is_map else list(value[: MAX_LIST + 1])
        elif not field.has_presence or message.HasField(field.name):
            yield field.name, value
