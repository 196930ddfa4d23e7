"""`BaseJob`, the base of users' job classes. A class defines the work; `dispatch()` requests it."""

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
    """The failure of a job, as passed to `on_failed`.

    Attributes:
        reason: a word of `jobledger.Reason`.
        error_type: name of the exception's class; None if the process died.
        message: message of the exception, or a description of the process's death.
        traceback: traceback of the exception, if there was one.
        attempt: number of the last attempt.
    """

    reason: str
    error_type: str | None
    message: str
    traceback: str | None
    attempt: int


class BaseJob:
    """Base class of jobs. A subclass defines `_perform`, whose parameters become the payload.

    Defining a class registers it under its `job_type`. Attributes:

        queue: default queue of its jobs; None to choose it by the priority.
        priority: 1, the highest, to 10; other numbers are clamped to this range, with a warning.
        expires_in: a job that does not start within this time fails as expired, counted from the dispatch or from the
            end of its delay. Seconds as a number, timedelta, or a text such as "6h"; None for never.
        timeout: longest duration of an attempt: seconds as a number, timedelta, or a text such as "15m"; None for the
            settings' default.
        retry: the retry policy; see `Retry`.
        unique: which jobs are equal, so that only one exists at a time; see `Unique`.
        limit: how many jobs run at once, in the whole fleet; see `Limit`.
        rate: how many attempts start within a time, in the whole fleet; see `Rate`.
        on_parent_failure: the fate of a job when a parent (`after=`) fails or is canceled: "cancel" cancels it too,
            "run" runs it anyway, "hold" makes it wait until the parent is retried and completes.
        job_type: its name in the ledger; default: the class's name.
        title: a job's description for people; may name parameters, as in "Load {table}".
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

    # -- defined by subclasses

    def _perform(self, *args: Any, **kwargs: Any) -> Any:
        """The work, as `def` or `async def`. Its result is stored as JSON."""
        raise NotImplementedError

    def on_failed(self, error: Failure) -> None:
        """Called after the job has failed, in a separate job, also if the process was killed; may be `async def`.

        That job is dispatched once. Like every job, it may run more than once if it is interrupted.
        """

    @classmethod
    def check_payload(cls, /, *args: Any, **payload: Any) -> None:
        """Called at dispatch with the typed payload. Raise `JobRefused` to refuse a payload that the types allow."""

    # -- called by users

    @classmethod
    def set(cls, **options: Any) -> Dispatcher:
        """Set options before the dispatch.

        Args:
            **options: queue, priority, expires_in, timeout, max_attempts, title, owner, delay, after,
                on_parent_failure, idempotency_key, idempotency_scope.

        Returns:
            A dispatcher with the methods `dispatch`, `dispatch_in`, and so on, of this class.

        Raises:
            OptionError: an option does not exist or its value is invalid.
        """
        return Dispatcher(cls, cls.options).set(**options)

    @classmethod
    def dispatch(cls, /, *, session: SyncSession | None = None, **given: Any) -> JobHandle:
        """Dispatch a job: write its row and push its wake-up.

        Args:
            session: session in whose transaction the row is written; the wake-up is pushed after its commit, and a
                rollback removes the job. None for a transaction of its own, which commits before this returns.
            **given: the payload; and the options `queue=`, `priority=`, `after=` (one or several parents, by handle or
                id, that must complete first), `on_parent_failure=`, `expires_in=`, `timeout=`, `max_attempts=`,
                `idempotency_key=` (if a job was dispatched with this key before, that job is returned),
                `idempotency_scope=` (namespace of the key).

        Returns:
            A handle of the job. Without `session`, the job is now in the ledger and will end.

        Raises:
            DispatchRefused: payload or options are invalid, or the key belongs to another payload; nothing was written.
            LedgerUnavailable: Postgres is away.
        """
        return Dispatcher(cls, cls.options).dispatch(session=session, **given)

    @classmethod
    def dispatch_in(cls, delay: Duration, /, *, session: SyncSession | None = None, **given: Any) -> JobHandle:
        """`dispatch`, with `delay` as earliest start: seconds from now, timedelta, or a text such as "5m"."""
        return Dispatcher(cls, cls.options).dispatch_in(delay, session=session, **given)

    @classmethod
    def dispatch_at(cls, when: datetime, /, *, session: SyncSession | None = None, **given: Any) -> JobHandle:
        """`dispatch`, with `when` as earliest start: a datetime with a time zone."""
        return Dispatcher(cls, cls.options).dispatch_at(when, session=session, **given)

    @classmethod
    def dispatch_many(
        cls, payloads: Iterable[Mapping[str, Any]], /, *, session: SyncSession | None = None, **spoken: Any
    ) -> list[JobHandle]:
        """Dispatch many jobs of this class in one transaction, all or none.

        Args:
            payloads: one payload per job.
            session: as for `dispatch`.
            **spoken: options for all jobs, as for `dispatch`, except `idempotency_key`.

        Returns:
            A handle for each payload, in their order.

        Raises:
            DispatchRefused: a payload or an option is invalid; nothing was written.
            LedgerUnavailable: Postgres is away, or too slow.
        """
        return Dispatcher(cls, cls.options).dispatch_many(payloads, session=session, **spoken)

    @classmethod
    async def adispatch(cls, /, *, session: AsyncSession | None = None, **given: Any) -> JobHandle:
        """`dispatch` for async code; `session` is an AsyncSession."""
        return await Dispatcher(cls, cls.options).adispatch(session=session, **given)

    # -- for use inside `_perform`

    @property
    def session(self) -> Session:
        """A database session whose writes commit in the transaction that completes the job, exactly once."""
        return self._running.session

    @property
    def payload(self) -> dict[str, Any]:
        """The payload as JSON: plain dicts, lists, texts, numbers, booleans and None."""
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
        """Whether this job's worker was asked to stop; true about a second after the request.

        A job that can stop early should do so, for example by finishing its part and dispatching the rest. A job that
        runs on for longer than `JOBLEDGER_DRAIN_SECONDS` is rolled back and run again by another worker.
        """
        return self._running.stopping

    def check(self) -> None:
        """Raise if this job was canceled or has lost its lease; call it where the work can stop cleanly.

        A cancel reaches a job that runs for longer than a few seconds within three seconds. A job that does not call
        this is interrupted anywhere three seconds later. The exceptions are no `Exception`s: do not catch them.

        Raises:
            JobCanceled: the job was canceled.
            FencedOut: another attempt of the job may be running; this attempt can no longer write.
        """
        self._running.check()

    @property
    def tick(self) -> Tick | None:
        """The schedule's tick that dispatched this job, with the fire time before it; None if no schedule did.

        Raises:
            LedgerUnavailable: Postgres is away.
        """
        return self._running.tick

    @property
    def log(self) -> structlog.stdlib.BoundLogger:
        """A logger, `self.log.info("loaded", rows=5)`; the last lines are stored with the attempt."""
        return self._running.log

    def progress(self, done: int | None = None, total: int | None = None, note: str | None = None) -> None:
        """Report progress; visible about a second later, also while the job's transaction is open.

        Args:
            done: finished units of work.
            total: all units of work.
            note: text for people.
        """
        self._running.report(done, total, note)

    @property
    def _running(self) -> "RunContext":
        if self._context is None:
            raise RuntimeError(f"{type(self).__name__} is not running: this is available only inside _perform.")
        return self._context

    @classmethod
    def run(cls, context: "RunContext") -> Any:
        """Perform one attempt; called by the worker, which holds the lease and sets the timeout.

        Raises:
            PayloadError: the stored payload does not fit this version of the class.
        """
        job = cls._made(context)
        arguments = cls.payload_type.decode(context.payload, cls.job_type) if cls.payload_type else {}
        return _awaited(job._perform(**arguments))

    @classmethod
    def call_on_failed(cls, context: "RunContext", failure: Failure) -> None:
        """Call `on_failed`; called by the callback job, with the failed job's id and payload in the context."""
        on_failed: Callable[[Failure], Any] = cls._made(context).on_failed
        _awaited(on_failed(failure))

    @classmethod
    def _made(cls, context: "RunContext") -> Self:
        job = cls()
        object.__setattr__(job, "_context", context)  # a class may forbid setting attributes
        return job


def _awaited(result: Any) -> Any:
    return asyncio.run(result) if inspect.iscoroutine(result) else result


def _payload_type_of(job_class: type[BaseJob]) -> tuple[Payload | None, str]:
    """The payload type of a class; or None and the reason, if the class is abstract or generic and so is no job."""
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
    """Refuse a `unique`, `limit` or `rate` that does not fit the class's parameters."""
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
