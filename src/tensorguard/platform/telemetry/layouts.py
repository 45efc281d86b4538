"""Bodies that were read before and come again with other times and values: nothing is parsed twice.

An exporter sends the same series in the same order each time. Its protobuf then has the same bytes
but for times and values, which have a fixed width: all tags, lengths and names are equal. Where they
are, byte for byte, the body means what the one before meant, and its columns are read off it.

What is kept is bounded by bytes. A layout that is in use is never pushed out: a fleet with more
layouts than fit would learn each anew and use none.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock
from typing import Final

import numpy as np
import numpy.typing as npt

from tensorguard.platform.telemetry.generations import Generations

MAX_BYTES: Final = 8 << 20
MAX_SHARE: Final = 16  # one layout takes at most this part of it
IN_USE_SECONDS: Final = 120.0
WIDTH: Final = 8  # bytes of a time and of a value
VALUE_AT: Final = 9  # from the time on: its bytes, then the value's tag

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]


@dataclass(slots=True)
class Layout:
    """One body, with ones in `fixed` where every byte of the next must be the same."""

    form: Bytes
    fixed: Bytes
    series: Integers
    times: Integers  # where each time begins
    integers: Integers  # rows whose value is an integer
    used: float

    @property
    def size(self) -> int:
        """Return the bytes that it takes."""
        arrays = (self.form, self.fixed, self.series, self.times, self.integers)
        return sum(array.nbytes for array in arrays)

    def fits(self, body: Bytes) -> bool:
        """Say whether the body differs in times and values alone."""
        difference = np.bitwise_xor(body, self.form)
        np.bitwise_and(difference, self.fixed, out=difference)
        return not difference.any()


def columns(
    body: Bytes, times: Integers, integers: Integers
) -> tuple[Integers, npt.NDArray[np.float64]]:
    """Return the times and values at these places."""
    found = body[times[:, None] + np.arange(VALUE_AT + WIDTH)]
    bits = np.ascontiguousarray(found[:, VALUE_AT:])
    values = bits.view("<f8").ravel()
    if len(integers):
        values = values.copy()
        values[integers] = bits.view("<i8").ravel()[integers]
    return np.ascontiguousarray(found[:, :WIDTH]).view("<i8").ravel(), values


class Layouts:
    """What is known of each sender's bodies, by their length. Safe to use from threads."""

    def __init__(
        self, *, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._seen: Generations[Hashable, bool] = Generations()
        self._known: OrderedDict[Hashable, Layout] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: Hashable, body: Bytes) -> Layout | None:
        """Return the layout that `body` has, if it came before."""
        layout = self._known.get(key)
        if layout is None or not layout.fits(body):
            return None
        layout.used = self._clock()
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
        return layout

    def worth(self, key: Hashable) -> bool:
        """Say whether a sender's body of this length came before: once is no habit."""
        if self._seen.get(key):
            return True
        self._seen.put(key, value=True)
        return False

    def learn(
        self,
        key: Hashable,
        body: Bytes,
        series: Integers,
        times: Integers,
        starts: Integers,
        integers: Integers,
    ) -> None:
        """Keep what was read, if there is room. `starts` is where start times begin."""
        fixed = np.full(len(body), 0xFF, dtype=np.uint8)
        fixed[times[:, None] + np.arange(WIDTH)] = 0
        fixed[times[:, None] + (VALUE_AT + np.arange(WIDTH))] = 0
        fixed[starts[:, None] + np.arange(WIDTH)] = 0
        layout = Layout(body.copy(), fixed, series, times, integers, self._clock())
        if layout.size > self._max_bytes // MAX_SHARE:
            return
        with self._lock:
            before = self._known.pop(key, None)
            self._bytes -= before.size if before else 0
            while self._bytes + layout.size > self._max_bytes:
                oldest = next(iter(self._known.values()))
                if layout.used - oldest.used < IN_USE_SECONDS:
                    return
                self._known.popitem(last=False)
                self._bytes -= oldest.size
            self._known[key] = layout
            self._bytes += layout.size
