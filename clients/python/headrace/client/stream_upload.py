"""What a stream's user hands over, as both clients' shells do it: all but the waiting."""

from __future__ import annotations

from headrace.client.stream_options import Framing, StreamOptions, opening
from headrace.client.stream_results import StreamSummary
from headrace.client.stream_samples import Sampler, Samples
from headrace.client.stream_session import Session
from headrace.inference.tensors import Array


class Plan:
    """How one stream is opened, and how its samples are read. Raises as `opening` does."""

    def __init__(self, model: str, framing: Framing, options: StreamOptions) -> None:
        self._opening = opening(model, framing, options)
        self._sampler = Sampler(options.formats, finite=options.non_finite == "refuse")
        self._max_unread = options.max_unread

    def session(self) -> Session:
        """One to be opened; after a refusal that is worth another attempt, a new one."""
        return Session(self._opening, self._sampler, self._max_unread)

    def upload(self, session: Session, samples: Samples, timestamp_ns: int | None) -> Upload:
        """Raises TypeError and ValueError for samples that do not fit."""
        arrays = self._sampler.read(samples)
        session.check()
        if timestamp_ns is not None:
            session.stamp(timestamp_ns)
        return Upload(session, self._sampler, arrays, timestamp_ns)


class Upload:
    """Samples on their way into the session, as far as there is credit for them."""

    def __init__(
        self, session: Session, sampler: Sampler, arrays: list[Array], timestamp_ns: int | None
    ) -> None:
        self._session = session
        self._sampler = sampler
        self._arrays = arrays
        self._timestamp = timestamp_ns
        self._done = 0

    def advance(self) -> bool | None:
        """True once all is handed over; None while credit has to come first. Raises what has ended
        the session, and RuntimeError where it takes no more."""
        total = len(self._arrays[0])
        while self._done < total:
            count = min(self._session.room(), total - self._done)
            if count <= 0:
                return None
            chunk = self._sampler.cut(self._arrays, self._done, count, self._timestamp)
            self._session.put(chunk)
            self._done += count
            self._timestamp = None  # of what follows, by the sample rate
        return True


class StreamFacts:
    """What a stream knows of itself without asking."""

    _session: Session
    _begun = False

    def _expect_begun(self) -> None:
        """Raises RuntimeError before `open`: nothing would ever come."""
        if not self._begun:
            raise RuntimeError(
                "the stream is not open: use it in a `with` block (`async with` in asyncio), or "
                "call open() first"
            )

    @property
    def version(self) -> str:
        """The model's version that served when the stream was opened."""
        return self._session.opened.version if self._session.opened else ""

    @property
    def state_inputs(self) -> tuple[str, ...]:
        """The model's state inputs, which the server keeps; empty for a stateless model."""
        return tuple(self._session.opened.state_inputs) if self._session.opened else ()

    @property
    def summary(self) -> StreamSummary | None:
        """What the stream came to; None until it is closed."""
        return self._session.summary

    @property
    def resumes(self) -> int:
        """How many times it went on on a new connection."""
        return self._session.resumes
