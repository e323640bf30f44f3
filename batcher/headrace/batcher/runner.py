"""The asyncio shell around the scheduler: promises, the timer, and the executors' completions.

Theory of operation. Callers submit, and are promised an answer. Events that fall into one turn of
the event loop are decided once, at its end, by `Scheduler.step`; the runner performs what that
returns. What arrives where others usually are is decided some turns later, once no more follows: a
transport brings one by one, some turns apart, what came together. Time is read from the clock it
was given, never from the loop: uvloop caches `loop.time()` at the grain of a millisecond. A timer
may fire early; the policy is asked again and says when to wake.

An executor's thread that has ended a run decides what it runs next by itself, and the event loop is
told of both: to wake the loop for that, and be woken by it, is a tenth of a millisecond or several,
in which nothing would run. So the scheduler is called under a lock. All else is done on the loop.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Final

from headrace.batcher import outcomes
from headrace.batcher.admission import come_again
from headrace.batcher.callers import Answer, Callers, Run
from headrace.batcher.errors import (
    DeadlineTooShort,
    Draining,
    NoExecutor,
    Overloaded,
)
from headrace.batcher.executor import Completion, Executor
from headrace.batcher.observer import Observer
from headrace.batcher.policy import TIMER_GRAIN, Policy
from headrace.batcher.promise import Promise
from headrace.batcher.request import Action, Batch, Dispatch, Drop, Reject, Request, WakeAt, Why
from headrace.batcher.scheduler import Scheduler
from headrace.batcher.state import Device, Limits, State
from headrace.batcher.watchdog import Watchdog, hung

# Arrivals have settled when none has come for so many turns of the event loop; after so many turns
# in all or so many seconds, and where requests find fewer than so many others here, they are not
# waited for. A turn in which nothing is done takes some microseconds (docs/performance.md,
# "Decisions that wait").
_QUIET_TURNS: Final = 4
_MOST_TURNS: Final = 12
_MOST_SECONDS: Final = 0.001
_COMPANY: Final = 0.5


class Runner:
    """Batches the requests of one model onto its executors. Made, and used, on the event loop.

    `lost` is told of each executor that was given up, with the batch that hangs on it. Whoever
    listens puts another in its place by `put`, or says by `unable` that there is none to be had.
    """

    def __init__(
        self,
        executors: Sequence[Executor],
        policy: Policy,
        limits: Limits,
        clock: Callable[[], float],
        observer: Observer | None = None,
        device: Device | None = None,
    ) -> None:
        self._executors = {executor.name: executor for executor in executors}
        self._untold: set[str] = set()  # executors with a run of which the loop has not heard yet
        if len(self._executors) != len(executors) or not executors:
            raise ValueError("a runner needs executors with different names")
        kinds = {executor.name: executor.kind for executor in executors}
        teams = {executor.name: executor.team for executor in executors}
        self._scheduler = Scheduler(kinds, policy, limits, teams, device)
        self._clock = clock
        self._observer = observer or Observer()
        self._watchdog = Watchdog(self.state)
        self._look: asyncio.TimerHandle | None = None
        self._unable = ""
        self.lost: Callable[[Executor, Batch], None] = lambda executor, batch: None
        self._callers = Callers(self._observer)
        self._decision: asyncio.Handle | None = None
        self._settling: asyncio.Handle | None = None
        self._arrived = False
        self._settle_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._draining = False
        self._empty: asyncio.Event = asyncio.Event()
        if isinstance(self.state.device.lock, nullcontext):
            self.state.device.lock = threading.Lock()
        self._lock = self.state.device.lock
        self._loop, self._home = asyncio.get_running_loop(), threading.get_ident()

    def __repr__(self) -> str:
        return f"<Runner: {self.state!r}{', draining' if self._draining else ''}>"

    @property
    def state(self) -> State:
        return self._scheduler.state

    def come_again(self, caller: Hashable) -> float | None:
        """Seconds after which `caller`, whose deadline had passed when his request came, may try
        again; None where nobody else was here lately."""
        with self._lock:
            return come_again(self.state, caller, self._clock())

    def submit(self, request: Request) -> Promise[Answer]:
        """Accepts `request`; the promise ends with its Answer, Expired, Draining, ExecutionFailed
        or NoExecutor, or with Overloaded when its place in a full queue was given to another
        caller.

        Cancelling it withdraws the request. Raises Overloaded when a bound of the queue is
        reached or the deadline is predicted to be missed, DeadlineTooShort when no queue is to
        blame for that, Draining when the runner takes no more work, NoExecutor when none is left.
        """
        if self._draining:
            raise Draining(self._turned_away(request, Why.DRAINING, "the model is being unloaded"))
        if self._unable:
            raise NoExecutor(self._turned_away(request, Why.NO_EXECUTOR, self._unable))
        with self._lock:
            refusal = self._scheduler.submit(request)
        if refusal is not None:
            self._observer.rejected(refusal)
            if refusal.why is Why.TOO_SHORT:
                raise DeadlineTooShort(refusal.message, refusal.retry_after or None)
            raise Overloaded(refusal.message, refusal.retry_after)
        self._observer.accepted(request)
        promise = self._callers.promise(request, partial(self._withdrawn, request))
        self._arrived = True
        if self.state.crowd < _COMPANY or self._full(request):
            self._decide_soon()
        else:
            self._settle_soon()
        return promise

    def _turned_away(self, request: Request, why: Why, message: str) -> str:
        """Tells the observer of what never came to the scheduler. Returns `message`."""
        self._observer.rejected(Reject(request, why, math.inf, message))
        return message

    async def drain(self) -> None:
        """Takes no more work and returns when everything accepted has ended."""
        self._draining = True
        if self._idle():
            self._empty.set()
        await self._empty.wait()
        for timer in (self._timer, self._look):
            if timer is not None:  # it would keep all that is here in memory until it fires
                timer.cancel()

    def abort(self) -> None:
        """Ends every waiting request with Draining, and tells what runs to stop."""
        with self._lock:
            self._draining = self._callers.aborted = True
            running = [batch for batch in self.state.running.values() if batch is not None]
        for batch in running:
            self._executors[batch.executor].abandon(batch)
        self._end_waiting(Why.DRAINING)

    def put(self, executor: Executor) -> None:
        """`executor` takes the place of the one of its name, which was given up."""
        self._executors[executor.name] = executor
        with self._lock:
            self._scheduler.restore(executor.name)
        self._unable = ""
        self._decide_soon()

    def unable(self, message: str) -> None:
        """No executor could be put in the place of those given up, so far. If none is left at all,
        what waits ends with NoExecutor, and so does what comes until there is one."""
        if not self.state.able:
            self._unable = message
            self._end_waiting(Why.NO_EXECUTOR)

    def _end_waiting(self, why: Why) -> None:
        with self._lock:
            waiting = self._scheduler.withdraw_all()
        for request in waiting:
            self._drop(request, why)
        if self._draining and self._idle():
            self._empty.set()

    def _withdrawn(self, request: Request) -> None:
        if self._callers.leaves(request) is None:
            return
        with self._lock:
            abandoned = self._scheduler.cancel(request)
        self._observer.dropped(request, Why.CANCELLED, self._clock())
        if abandoned is not None:
            self._executors[abandoned.executor].abandon(abandoned)
        self._decide_soon()

    def _full(self, request: Request) -> bool:
        """Whether those like `request` that wait are a batch to which nothing can be added."""
        queue = self.state.queues.get(request.key)
        return queue is not None and queue.rows >= self.state.limits.max_batch_rows

    def _settle_soon(self) -> None:
        if self._settling is None:
            self._settle_until = self._clock() + _MOST_SECONDS
            self._settle(_QUIET_TURNS, _MOST_TURNS)

    def _settle(self, quiet: int, left: int) -> None:
        """Decides after `quiet` turns without arrivals, `left` at most."""
        if self._arrived:
            self._arrived, quiet = False, _QUIET_TURNS
        if not quiet or not left or self._clock() >= self._settle_until:
            self._decide()
            return
        self._settling = self._loop.call_soon(self._settle, quiet - 1, left - 1)

    def _decide_soon(self) -> None:
        if self._decision is None:
            self._decision = self._loop.call_soon(self._decide)

    def _decide(self) -> None:
        for handle in (self._decision, self._settling):
            if handle is not None:  # it is this one, or has become needless
                handle.cancel()
        self._decision = self._settling = None
        with self._lock:
            actions = self._scheduler.step(self._clock())
        self._perform(actions)

    def _perform(self, actions: Sequence[Action], begun: Batch | None = None) -> None:
        """Does what was decided. begun: a batch that its executor has begun already."""
        for action in actions:
            if isinstance(action, Dispatch):
                self._start(action.batch, begun is action.batch)
            elif isinstance(action, WakeAt):
                self._wake_at(action.time)
            elif isinstance(action, Drop):
                self._drop(action.request, action.why)
            else:
                self._callers.refuse(action)
        if self._draining and self._idle():
            self._empty.set()

    def _start(self, batch: Batch, begun: bool) -> None:
        self._observer.dispatched(batch)
        if not begun:
            self._executors[batch.executor].start(batch, self._done)
        if self._look is None and self.state.running[batch.executor] is batch:
            self._look_at(self._watchdog.begin(batch.started))

    def _done(
        self, batch: Batch, completion: Completion, /, *, goes_on: bool = False
    ) -> Batch | None:
        """The executor's word that `batch` has run. Of its threads, this is what they come to."""
        if completion.error is None and len(completion.results) != len(batch.requests):
            received, expected = len(completion.results), len(batch.requests)
            error = RuntimeError(f"the executor gave {received} results to {expected} requests")
            completion = Completion(error=error)
        if threading.get_ident() == self._home:
            self._completed(batch, completion)
            return None
        # What a run gave is charged to nobody until it is told, so only one may be ahead of that.
        ahead = batch.executor in self._untold
        if goes_on and not ahead and self.state.queues and completion.error is None:
            return self._gone_on(batch, completion)
        self._post(self._completed, batch, completion)
        return None

    def _gone_on(self, batch: Batch, completion: Completion) -> Batch | None:
        """What the executor that has run `batch` is to run next. On that executor's thread."""
        with self._lock:
            if self.state.running[batch.executor] is not batch:
                return None  # it was given up
            now = self._clock()
            seconds, work = completion.seconds, completion.work
            ended = self._scheduler.complete(batch.executor, seconds, now=now, work=work)
            actions: Sequence[Action] = ()
            try:
                if not self._callers.aborted:  # or it would begin what is to be ended
                    actions = self._scheduler.step(now)
            except Exception:  # noqa: BLE001 (decided again on the loop, whose handler hears of it)
                self._post(self._decide_soon)
            dispatched = (action.batch for action in actions if isinstance(action, Dispatch))
            following = next((b for b in dispatched if b.executor == batch.executor), None)
            # Told under the lock, for the loop to hear of each run's beginning before its end.
            self._untold.add(batch.executor)
            told = self._post(self._follow, Run(batch, completion, ended, now), actions, following)
        return following if told else None

    def _post(self, callback: Callable[..., None], *arguments: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            return False
        return True

    def _follow(self, run: Run, actions: Sequence[Action], begun: Batch | None) -> None:
        """After an executor has gone on by itself, with `begun` unless that is None."""
        self._untold.discard(run.batch.executor)
        self._callers.tell(run)
        self._perform(actions, begun)
        if self._callers.aborted:
            self._end_waiting(Why.DRAINING)

    def _completed(self, batch: Batch, completion: Completion) -> None:
        now, failed = self._clock(), completion.error is not None
        with self._lock:
            if self.state.running[batch.executor] is not batch:
                return  # it was given up, and its callers have been told
            seconds, work = completion.seconds, completion.work
            ended = self._scheduler.complete(
                batch.executor, seconds, failed=failed, now=now, work=work
            )
        self._callers.tell(Run(batch, completion, ended, now))
        if self._callers.aborted:
            self._end_waiting(Why.DRAINING)  # a batch of several that was stopped waits again
        elif self._draining or (self.state.queues and not self.state.device.pressed):
            self._decide_soon()
        elif self.state.queues:
            self._settle_soon()  # an executor that idles meanwhile leaves its core to the loop

    def _drop(self, request: Request, why: Why) -> None:
        now = self._clock()
        promise = self._callers.leaves(request)
        if promise is None:
            return
        if why is Why.OVERTAKEN and request.deadline < now + TIMER_GRAIN:
            why = Why.EXPIRED  # seen when its timer fired, a little before or after its time
        self._observer.dropped(request, why, now)
        with self._lock:
            error = outcomes.of_drop(request, why, self.state, now, self._unable)
        promise.fail(error)

    def _wake_at(self, time: float) -> None:
        # A timer that fires too early only asks again: far cheaper than re-arming it each time.
        if self._timer is not None:
            if self._timer_due <= time:
                return
            self._timer.cancel()
        delay = max(time - self._clock(), TIMER_GRAIN)  # a shorter one would spin
        self._timer_due = time
        self._timer = self._loop.call_later(delay, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._decide_soon()

    def _look_at(self, time: float | None) -> None:
        """Has the watchdog look at `time`, by a timer of its own: it is nearly never early news."""
        if time is not None:
            delay = max(time - self._clock(), TIMER_GRAIN)
            self._look = self._loop.call_later(delay, self._look_now)

    def _look_now(self) -> None:
        self._look, now = None, self._clock()
        hang, again = self._watchdog.look(now)
        for batch in hang:
            self._give_up(batch, now)
        self._look_at(again)

    def _give_up(self, batch: Batch, now: float) -> None:
        executor = self._executors[batch.executor]
        with self._lock:
            if self.state.running[batch.executor] is not batch:
                return  # it has ended after all
            ended = self._scheduler.give_up(batch.executor)
        executor.desert(batch)
        self._callers.give_up(Run(batch, Completion(error=hung(batch, now)), ended, now))
        self.lost(executor, batch)
        self._decide_soon()

    def _idle(self) -> bool:
        """Whether nothing waits or runs, nor has run without its callers having been told."""
        running = self.state.running.values()
        return not self._callers and all(batch is None for batch in running)
