"""Streams without a GPU that know what they have seen of each other."""

from __future__ import annotations

from contextlib import contextmanager


class MadeStream:
    """A stream as a vector clock: how far it has come, and how far it knows that others had."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = {name: 0}

    def work(self) -> int:
        """Does something; returns when."""
        self.seen[self.name] += 1
        return self.seen[self.name]

    def knows(self, other: MadeStream, time: int) -> bool:
        """True where whatever comes next here runs behind what the other stream did at `time`."""
        return self.seen.get(other.name, 0) >= time

    def wait_event(self, event: MadeEvent) -> None:
        assert event.seen is not None, "an event is waited for that was never recorded"
        for name, time in event.seen.items():
            self.seen[name] = max(self.seen.get(name, 0), time)


class MadeEvent:
    """What a stream had seen when the event was recorded."""

    def __init__(self) -> None:
        self.seen = None

    def record(self, stream: MadeStream) -> None:
        self.seen = dict(stream.seen)


class MadeStreams:
    """Takes the place of CudaStreams."""

    def __init__(self) -> None:
        self.main, self.side = MadeStream("main"), MadeStream("side")
        self._current = self.main
        self.shared: list[tuple[int, str]] = []

    def current(self) -> MadeStream:
        return self._current

    @contextmanager
    def on_side(self):
        with self.on(self.side):
            yield

    @contextmanager
    def on(self, stream: MadeStream):
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def event(self) -> MadeEvent:
        return MadeEvent()

    def share(self, tensors, stream) -> None:
        self.shared += [(tensor.data_ptr(), stream.name) for tensor in tensors]
