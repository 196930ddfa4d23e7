"""`BaseJob`: what users subclass. A job class says what can be done; `dispatch()` asks for it."""

import asyncio
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from jobledger.domain.limits import Limit, Rate
from jobledger.domain.options import DEFAULT_PRIORITY, Duration, Options
from jobledger.domain.payload import Payload
from jobledger.domain.retry import Retry
from jobledger.domain.signature import UnboundTypeVariables, bindings_of, type_variables_of
from jobledger.domain.tick import Tick
from jobledger.domain.unique import Unique
from jobledger.errors import JobDefinitionError, OptionError
from jobledger.job import unfit
from jobledger.job.dispatcher import Dispatcher, SyncSession
from jobledger.job.handle import JobHandle
from jobledger.registry import registry

if TYPE_CHECKING:  # a process that only dispatches loads no worker
    from jobledger.worker.context import RunContext


@dataclass(frozen=True, slots=True)
class Failure:
    """How a job failed, as `on_failed` is told.

    Attributes:
        reason: a word of `jobledger.Reason`.
        error_type: name of the exception's class; None if the process died.
        message: of the exception, or what is known of the death.
        traceback: of the exception, if there was one.
        attempt: number of the last attempt.
    """

    reason: str
    error_type: str | None
    message: str
    traceback: str | None
    attempt: int


class BaseJob:
    """Subclass this and write `_perform`; its parameters become the payload.

    A class is known by its `job_type` from its definition on. Attributes:

        queue: the queue of its jobs, unless a dispatch says another; if none is said, the priority chooses it.
        priority: 1, the highest, to 10; what is beyond is brought into this range, with a warning.
        expires_in: a job that is not started within this fails as expired; from the dispatch, or from the end of its
            delay. As seconds, timedelta or a text such as "6h"; None for never.
        timeout: longest attempt, as seconds, timedelta or a text such as "15m"; None for the settings' default.
        retry: when failed attempts run again.
        unique: which of its jobs are equal, so that there is one at a time; see `Unique`.
        limit: how many of its jobs run at once, in the whole fleet; see `Limit`.
        rate: how many of its attempts start within a time, in the whole fleet; see `Rate`.
        on_parent_failure: what becomes of a job when one that it waits for (`after=`) fails or is canceled: "cancel" it
            too, "run" it all the same, or "hold" it until that one was retried and completes.
        job_type: what the ledger calls it; the class's name unless said.
        title: what people see as a job's description; may name parameters, as in "Load {table}".
        api_dispatchable: whether the API may create such jobs.
    """

    queue: ClassVar[str | None] = None
    priority: ClassVar[int] = DEFAULT_PRIORITY
    expires_in: ClassVar[Duration | None] = None
    timeout: ClassVar[Duration | None] = None
    retry: ClassVar[Retry] = Retry()
    unique: ClassVar[Unique | None] = None
    limit: ClassVar[Limit | None] = None
    rate: ClassVar[Rate | None] = None
    on_parent_failure: ClassVar[str] = "cancel"
    job_type: ClassVar[str] = ""
    title: ClassVar[str | None] = None
    api_dispatchable: ClassVar[bool] = False

    payload_type: ClassVar[Payload | None] = None
    not_a_job: ClassVar[str] = unfit.NO_PERFORM
    options: ClassVar[Options] = Options()
    has_on_failed: ClassVar[bool] = False

    _context: "RunContext | None" = None

    def __init_subclass__(cls, **extra: Any) -> None:
        super().__init_subclass__(**extra)
        if cls._perform is BaseJob._perform:
            return  # a common ancestor of jobs, not a job
        cls.job_type = cls.__dict__.get("job_type") or cls.__name__
        unfit.refuse_job_type(cls)
        unfit.refuse_methods(cls, BaseJob)
        payload_type, cls.not_a_job = _payload_type_of(cls)
        cls.payload_type = payload_type
        if payload_type is None:
            return  # an ancestor, too
        unfit.refuse_check(cls, payload_type.field_names)
        unfit.refuse_constructor(cls)
        if not isinstance(cls.retry, Retry):
            raise JobDefinitionError(f"{cls.__name__}.retry={cls.retry!r}: say Retry(…).")
        try:
            cls.options = Options().but(
                queue=cls.queue,
                priority=cls.priority,
                expires_in=cls.expires_in,
                timeout=cls.timeout,
                title=cls.title,
                max_attempts=cls.retry.max_attempts,
                on_parent_failure=cls.on_parent_failure,
            )
        except OptionError as error:
            raise JobDefinitionError(f"{cls.__name__}: {error}") from None
        if cls.options.priority != cls.priority:
            text = f"{cls.__name__}.priority={cls.priority} is not within 1 to 10: {cls.options.priority} is taken."
            warnings.warn(text, stacklevel=2)
        cls.has_on_failed = cls.on_failed is not BaseJob.on_failed
        _refuse_unfit(cls)
        registry.register(cls.job_type, cls)

    # -- to be written by subclasses

    def _perform(self, *args: Any, **kwargs: Any) -> Any:
        """The work; `async def` works too. What it returns is kept as JSON."""
        raise NotImplementedError

    def on_failed(self, error: Failure) -> None:
        """Called after the last attempt, in a job of its own, also when the process was killed; may be `async def`.

        That job is dispatched once; like every job it runs again if it is interrupted.
        """

    @classmethod
    def check_payload(cls, /, *args: Any, **payload: Any) -> None:
        """Called at dispatch with the typed payload, to refuse what types cannot: raise `JobRefused`."""

    # -- to be asked for

    @classmethod
    def set(cls, **options: Any) -> Dispatcher:
        """Speak options before the dispatch: queue, priority, expires_in, timeout, max_attempts, title, owner, delay,
        after, on_parent_failure, idempotency_key, idempotency_scope.

        Raises:
            OptionError: an option does not exist or does not make sense.
        """
        return Dispatcher(cls, cls.options).set(**options)

    @classmethod
    def dispatch(cls, /, *, session: SyncSession | None = None, **given: Any) -> JobHandle:
        """Accept a job: write its row, wake a queue.

        Args:
            session: write the row in this transaction: it is pushed after the commit, and gone with a rollback.
            **given: the payload; and the options `queue=`, `priority=`, `after=` (a job or several, by handle or id,
                that must complete first), `on_parent_failure=`, `expires_in=`, `timeout=`, `max_attempts=`,
                `idempotency_key=` (if a job was dispatched with it before, that one is given back),
                `idempotency_scope=` (whose key it is).

        Returns:
            A handle; once this returns without a session, the job is in the ledger and will end.

        Raises:
            DispatchRefused: payload or options are wrong, or the key is another payload's; nothing was written.
            LedgerUnavailable: Postgres is away.
        """
        return Dispatcher(cls, cls.options).dispatch(session=session, **given)

    @classmethod
    def dispatch_in(cls, delay: Duration, /, *, session: SyncSession | None = None, **given: Any) -> JobHandle:
        """The same, not before `delay` from now: seconds, timedelta, or a text such as "5m"."""
        return Dispatcher(cls, cls.options).dispatch_in(delay, session=session, **given)

    @classmethod
    def dispatch_at(cls, when: datetime, /, *, session: SyncSession | None = None, **given: Any) -> JobHandle:
        """The same, not before this moment, which must say its time zone."""
        return Dispatcher(cls, cls.options).dispatch_at(when, session=session, **given)

    @classmethod
    def dispatch_many(
        cls, payloads: Iterable[Mapping[str, Any]], /, *, session: SyncSession | None = None, **spoken: Any
    ) -> list[JobHandle]:
        """Accept many jobs of this class at once: one statement, one pipeline; all or none.

        Args:
            payloads: one payload per job.
            session: as for `dispatch`.
            **spoken: options for all of them.
        """
        return Dispatcher(cls, cls.options).dispatch_many(payloads, session=session, **spoken)

    @classmethod
    async def adispatch(cls, /, *, session: AsyncSession | None = None, **given: Any) -> JobHandle:
        """`dispatch` for async code; with an AsyncSession, in its transaction."""
        return await Dispatcher(cls, cls.options).adispatch(session=session, **given)

    # -- to be used inside `_perform`

    @property
    def session(self) -> Session:
        """A database session whose writes commit together with `completed`, exactly once."""
        return self._running.session

    @property
    def payload(self) -> dict[str, Any]:
        """The payload, as JSON has it."""
        return self._running.payload

    @property
    def job_id(self) -> UUID:
        """The ledger's id of this job."""
        return self._running.job_id

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._running.attempt

    @property
    def stopping(self) -> bool:
        """Whether this job's worker was asked to stop; known within a second or so, to a job that runs for longer.

        A job that can leave off does so now, for example by keeping what it has and dispatching the rest. One that
        runs on for longer than `JOBLEDGER_DRAIN_SECONDS` is handed back: rolled back, and run again by another worker.
        """
        return self._running.stopping

    def check(self) -> None:
        """End here if this job was canceled, or no longer counts; call it where the work can be left off cleanly.

        A job that runs for longer than a few seconds knows of a cancel within three; one that does not ask is
        interrupted three seconds later, wherever it is. What it raises is no `Exception`: let it pass.

        Raises:
            JobCanceled: somebody has canceled this job.
            FencedOut: another attempt of it may be running; this one can write nothing any more.
        """
        self._running.check()

    @property
    def tick(self) -> Tick | None:
        """The fire time of the schedule that dispatched this job, with the one before it; None if no schedule did.

        Raises:
            LedgerUnavailable: Postgres is away.
        """
        return self._running.tick

    @property
    def log(self) -> structlog.stdlib.BoundLogger:
        """A logger, `self.log.info("loaded", rows=5)`; the last lines are kept with the attempt."""
        return self._running.log

    def progress(self, done: int | None = None, total: int | None = None, note: str | None = None) -> None:
        """Say how far the job is; seen within a second or so, also while its transaction is open."""
        self._running.report(done, total, note)

    @property
    def _running(self) -> "RunContext":
        if self._context is None:
            raise RuntimeError(f"{type(self).__name__} is not running: this is only there inside _perform.")
        return self._context

    @classmethod
    def run(cls, context: "RunContext") -> Any:
        """Perform one attempt; called by the worker, under lease and alarm.

        Raises:
            PayloadError: the stored payload does not fit this version of the class.
        """
        job = cls._made(context)
        arguments = cls.payload_type.decode(context.payload, cls.job_type) if cls.payload_type else {}
        return _awaited(job._perform(**arguments))

    @classmethod
    def call_on_failed(cls, context: "RunContext", failure: Failure) -> None:
        """Call `on_failed`; its job does this, with the failed job's id and payload in the context."""
        on_failed: Callable[[Failure], Any] = cls._made(context).on_failed
        _awaited(on_failed(failure))

    @classmethod
    def _made(cls, context: "RunContext") -> Self:
        job = cls()
        object.__setattr__(job, "_context", context)  # a class may forbid its attributes to be set
        return job


def _awaited(result: Any) -> Any:
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def _payload_type_of(job_class: type[BaseJob]) -> tuple[Payload | None, str]:
    """What a class takes; nothing, and why, if it leaves something to its subclasses and so is no job itself."""
    name = job_class.__name__
    missing = unfit.abstract_methods(job_class)
    if missing:
        return None, f"is abstract ({', '.join(missing)}): dispatch a subclass that has all of its methods."
    try:
        payload_type = Payload.from_signature(job_class._perform, name, bindings_of(job_class, "_perform"))
    except UnboundTypeVariables as error:
        if not error.variables <= type_variables_of(job_class):
            raise
        left = ", ".join(sorted(one.__name__ for one in error.variables))
        return None, f"is generic in {left}: dispatch a subclass that says the type: class …({name}[…])."
    return payload_type, unfit.NO_PERFORM


def _refuse_unfit(job_class: type[BaseJob]) -> None:
    """What a class says of equal jobs, limits and rates must fit its parameters."""
    known = job_class.payload_type.field_names if job_class.payload_type else ()
    for name, kind in (("unique", Unique), ("limit", Limit), ("rate", Rate)):
        said = getattr(job_class, name)
        if said is None:
            continue
        if not isinstance(said, kind):
            raise JobDefinitionError(f"{job_class.__name__}.{name}={said!r}: say {kind.__name__}(…).")
        unknown = said.unknown_fields(known)
        if unknown:
            raise JobDefinitionError(
                f"{job_class.__name__}.{name}: {', '.join(unknown)} is no parameter of _perform, which has "
                f"{', '.join(known) or 'none'}."
            )
