"""The same batches in every form: OTLP, remote-write, JSON, and rows for COPY. All fit real robots.

`wide` is 10 series with 50 times each, `tall` is 1,000 series with one time each. A form is built once
per robot; each batch is that form with its own times and values written into it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from cramjam import snappy
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

MILLISECOND: Final = 1_000_000
MARK: Final = 0x0123_4567_0000_0000  # where times go; the low half counts the points
VARINT_MILLISECONDS: Final = 6  # bytes, until the year 2109

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shape:
    """How many series and times a batch has, from how many robots, over how many connections."""

    case: str
    series: int
    times: int
    robots: int
    connections: int

    @property
    def rows(self) -> int:
        """Samples of a batch."""
        return self.series * self.times


WIDE: Final = Shape("intake-wide", 10, 50, robots=8, connections=32)
TALL: Final = Shape("intake-tall", 1000, 1, robots=2, connections=16)


@dataclass(frozen=True, slots=True)
class Filling:
    """Times (nanoseconds) and values of one batch, series by series."""

    robot: int
    times: Integers
    values: Floats


class Generator:
    """Makes batches whose times never repeat."""

    def __init__(self, shape: Shape, seed: int, start: int) -> None:
        self.shape = shape
        self._random = np.random.default_rng(seed)
        self._start = start
        self._count = 0
        self._otlp = [_Otlp.of(shape, robot) for robot in range(shape.robots)]
        self._write = [_RemoteWrite.of(shape, robot) for robot in range(shape.robots)]

    def fill(self, count: int) -> Iterator[Filling]:
        """Yield the next `count` fillings."""
        for _ in range(count):
            robot, turn = self._count % self.shape.robots, self._count // self.shape.robots
            self._count += 1
            first = self._start + turn * self.shape.times * 20 * MILLISECOND
            moments = first + np.arange(self.shape.times, dtype=np.int64) * 20 * MILLISECOND
            times = np.tile(moments, self.shape.series)
            yield Filling(robot, times, self._random.normal(size=self.shape.rows))

    def otlp(self, filling: Filling) -> bytes:
        """Return an OTLP export."""
        return self._otlp[filling.robot].filled(filling)

    def remote_write(self, filling: Filling) -> bytes:
        """Return a remote-write request, compressed."""
        return bytes(snappy.compress_raw(self._write[filling.robot].filled(filling)))

    def json(self, filling: Filling) -> bytes:
        """Return our JSON."""
        times, values = filling.times.tolist(), filling.values.tolist()
        per = self.shape.times
        samples = [
            {
                "name": name(self.shape, place // per),
                "value": values[place],
                "ts": times[place],
                "labels": labels(self.shape, filling.robot, place // per),
                "unit": "rad",
            }
            for place in range(self.shape.rows)
        ]
        return msgspec.json.encode({"samples": samples})

    def rows(self, filling: Filling) -> tuple[Integers, Integers, Floats]:
        """Return the columns of the table; series ids are made up."""
        ids = np.arange(self.shape.series, dtype=np.int64) + 1 + filling.robot * self.shape.series
        return np.repeat(ids, self.shape.times), filling.times, filling.values


def name(shape: Shape, series: int) -> str:
    """Return the name of a series: one metric for the many joints of `tall`, some for `wide`."""
    return "joint.angle" if shape is TALL else f"joint.signal.{series}"


def labels(shape: Shape, robot: int, series: int) -> dict[str, str]:
    """Return the labels of a series."""
    own = {"joint": str(series)} if shape is TALL else {}
    return {"service.name": "arm", "robot": f"arm-{robot}", **own}


@dataclass(frozen=True, slots=True)
class _Otlp:
    form: Bytes
    places: Integers  # of each point's time; its value is 9 bytes on

    @classmethod
    def of(cls, shape: Shape, robot: int) -> _Otlp:
        request = ExportMetricsServiceRequest()
        resource = request.resource_metrics.add()
        for key, value in labels(WIDE, robot, 0).items():
            resource.resource.attributes.add(key=key).value.string_value = value
        scope = resource.scope_metrics.add()
        scope.scope.name = "joints"
        mark = MARK
        for series in range(shape.series):
            if shape is WIDE or series == 0:
                metric = scope.metrics.add(name=name(shape, series), unit="rad")
            for _ in range(shape.times):
                point = metric.gauge.data_points.add(time_unix_nano=mark, as_double=1.5)
                if shape is TALL:
                    point.attributes.add(key="joint").value.string_value = str(series)
                mark += 1
        body = request.SerializeToString()
        found = [body.index(struct.pack("<Q", MARK + point)) for point in range(shape.rows)]
        return cls(np.frombuffer(body, dtype=np.uint8), np.array(found))

    def filled(self, filling: Filling) -> bytes:
        form = self.form.copy()
        at = self.places[:, None] + np.arange(8)
        form[at] = filling.times.view(np.uint8).reshape(-1, 8)
        form[at + 9] = filling.values.view(np.uint8).reshape(-1, 8)
        return form.tobytes()


@dataclass(frozen=True, slots=True)
class _RemoteWrite:
    form: Bytes
    places: Integers  # of each sample's value; its time is 9 bytes on

    @classmethod
    def of(cls, shape: Shape, robot: int) -> _RemoteWrite:
        body, places = bytearray(), list[int]()
        sample = b"\x12\x10\x09" + bytes(8) + b"\x10" + bytes(VARINT_MILLISECONDS)
        for series in range(shape.series):
            pairs = {"__name__": name(shape, series), **labels(shape, robot, series)}
            head = b"".join(
                _framed(1, _framed(1, key.encode()) + _framed(2, value.encode()))
                for key, value in sorted(pairs.items())
            )
            message = _framed(1, head + sample * shape.times)
            first = len(body) + len(message) - shape.times * len(sample)
            places += [first + turn * len(sample) + 3 for turn in range(shape.times)]
            body += message
        return cls(np.frombuffer(bytes(body), dtype=np.uint8), np.array(places))

    def filled(self, filling: Filling) -> bytes:
        form = self.form.copy()
        form[self.places[:, None] + np.arange(8)] = filling.values.view(np.uint8).reshape(-1, 8)
        milliseconds = (filling.times // MILLISECOND).astype(np.int64)
        for place in range(VARINT_MILLISECONDS):
            digit = (milliseconds >> (7 * place)) & 0x7F
            more = 0x80 if place < VARINT_MILLISECONDS - 1 else 0
            form[self.places + 9 + place] = (digit | more).astype(np.uint8)
        return form.tobytes()


def _framed(number: int, payload: bytes) -> bytes:
    size, head = len(payload), bytearray([number << 3 | 2])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + payload
