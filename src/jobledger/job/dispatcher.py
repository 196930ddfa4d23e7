"""A dispatch with options: checks a payload against its class, and hands the request to `dispatch`."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Protocol

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, scoped_session

from jobledger.connections.default import default_connections
from jobledger.dispatch import accept
from jobledger.dispatch.admission import Request
from jobledger.domain.limits import Limit, Rate
from jobledger.domain.options import DISPATCH_OPTIONS, RESERVED_NAMES, Duration, Options, epoch, filled_in, seconds
from jobledger.domain.payload import Payload
from jobledger.domain.records import Accepted
from jobledger.domain.unique import Unique
from jobledger.errors import JobDefinitionError, OptionError, PayloadError
from jobledger.job.handle import JobHandle
from jobledger.job.unfit import ask_class, refuse_constructor
from jobledger.observe.log import get_logger

log: Final = get_logger(__name__)

SyncSession = Session | scoped_session[Session]


class Dispatchable(Protocol):
    """The part of a job class that a dispatch uses."""

    @property
    def job_type(self) -> str: ...
    @property
    def payload_type(self) -> Payload | None: ...
    @property
    def not_a_job(self) -> str: ...
    @property
    def unique(self) -> Unique | None: ...
    @property
    def limit(self) -> Limit | None: ...
    @property
    def rate(self) -> Rate | None: ...
    @property
    def has_on_failed(self) -> bool: ...
    def check_payload(self, *args: Any, **payload: Any) -> None: ...


class Dispatcher:
    """A job class with options: `X.set(queue="low").dispatch(…)`."""

    def __init__(self, job_class: "Dispatchable", options: Options) -> None:
        self._job_class = job_class
        self._options = options

    def set(self, **options: Any) -> "Dispatcher":
        """A dispatcher with further options: see `BaseJob.set`.

        Raises:
            OptionError: an option does not exist or its value is invalid.
        """
        return Dispatcher(self._job_class, self._with(options))

    def dispatch(self, /, *, session: SyncSession | None = None, **given: Any) -> JobHandle:
        """See `BaseJob.dispatch`."""
        return _handle(accept.dispatch([self._request(given)], session)[0])

    def dispatch_in(self, delay: Duration, /, *, session: SyncSession | None = None, **given: Any) -> JobHandle:
        """See `BaseJob.dispatch_in`."""
        options = replace(self._options, delay_seconds=seconds(delay, "dispatch_in"))
        return Dispatcher(self._job_class, options).dispatch(session=session, **given)

    def dispatch_at(self, when: datetime, /, *, session: SyncSession | None = None, **given: Any) -> JobHandle:
        """See `BaseJob.dispatch_at`."""
        options = replace(self._options, available_at_epoch=epoch(when, "dispatch_at"))
        return Dispatcher(self._job_class, options).dispatch(session=session, **given)

    def dispatch_many(
        self, payloads: Iterable[Mapping[str, Any]], /, *, session: SyncSession | None = None, **spoken: Any
    ) -> list[JobHandle]:
        """See `BaseJob.dispatch_many`."""
        if not isinstance(payloads, Iterable) or isinstance(payloads, Mapping | str | bytes):
            raise OptionError(f"dispatch_many({payloads!r:.60}): say a list of payloads, each a dictionary.")
        ready = self.set(**spoken)
        if ready._options.idempotency_key is not None:
            raise OptionError("dispatch_many takes no idempotency_key: dispatch each job with a key of its own.")
        requests = [ready.request(payload) for payload in payloads]
        return [_handle(one) for one in accept.dispatch(requests, session)] if requests else []

    def request(self, payload: Mapping[str, Any], /) -> Request:
        """Check a payload without dispatching it: `jobledger.dispatch.accept` takes several requests, of any classes.

        Raises:
            DispatchRefused: the payload does not fit the class.
        """
        if not isinstance(payload, Mapping):
            raise PayloadError(f"{self._job_class.job_type}: {payload!r:.60} is no payload: say a dictionary.")
        return self._request(dict(payload), options_inside=False)

    async def adispatch(self, /, *, session: AsyncSession | None = None, **given: Any) -> JobHandle:
        """See `BaseJob.adispatch`."""
        if session is None:
            return _handle((await asyncio.to_thread(lambda: accept.dispatch([self._request(given)])))[0])
        request = await asyncio.to_thread(self._request, given)  # `check_payload` may wait for a file or a server
        return _handle((await accept.dispatch_async([request], session))[0])

    def _with(self, spoken: Mapping[str, Any]) -> Options:
        options = self._options.but(**spoken)
        asked = spoken.get("priority")
        if asked is not None and asked != options.priority:
            job_type = self._job_class.job_type
            log.warning(
                "Out of range: the nearest priority is taken", job_type=job_type, asked=asked, taken=options.priority
            )
        return options

    def _request(self, given: dict[str, Any], *, options_inside: bool = True) -> Request:
        job_class = self._job_class
        if job_class.payload_type is None:
            name = getattr(job_class, "__name__", job_class.job_type)
            raise JobDefinitionError(f"{name} {job_class.not_a_job}")
        refuse_constructor(job_class)
        spoken: dict[str, Any] = {
            name: given.pop(name) for name in DISPATCH_OPTIONS if options_inside and name in given
        }
        reserved = sorted(RESERVED_NAMES.intersection(given))
        if reserved:
            raise OptionError(
                f"{job_class.job_type}: {reserved[0]!r} cannot be part of a payload; the name is kept for options."
            )
        options = self._with(spoken)
        payload = job_class.payload_type.encode(given, job_class.job_type)
        stored = json.loads(payload)
        ask_class(job_class, job_class.payload_type.decode(stored, job_class.job_type) or stored)
        may_be_known = job_class.unique is not None or options.idempotency_key is not None
        return Request(
            job_type=job_class.job_type,
            payload=payload,
            options=options if options.title is None else replace(options, title=filled_in(options.title, stored)),
            has_on_failed=job_class.has_on_failed,
            unique=job_class.unique,
            applied_limits=tuple(
                one.of(job_class.job_type, stored) for one in (job_class.limit, job_class.rate) if one is not None
            ),
            compared=job_class.payload_type.compared(stored, job_class.job_type) if may_be_known else None,
        )


def _handle(accepted: Accepted) -> JobHandle:
    return JobHandle(accepted.id, accepted.status, default_connections(), is_duplicate=accepted.is_duplicate)
