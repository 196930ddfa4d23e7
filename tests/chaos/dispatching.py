"""Dispatches the load of a run, in Python and over HTTP, and tells the history what became of each."""

import http.client
import json
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import chaos_jobs
import chaos_new_jobs
from canceling import cancel_for_sure
from history import History
from jobledger import BaseJob, DispatchRefused
from jobledger.connections.default import Connections
from jobledger.dispatch.accept import dispatch
from jobledger.dispatch.admission import Request
from jobledger.domain.options import Options
from load import EXPIRES_SECONDS, Task
from pace import wait_down

ONCE_TIMES: Final = 3
"""How often is dispatched what there must be one of."""

PAUSE_SECONDS: Final = 0.5
"""After a dispatch that did not work, before the next one."""

HTTP_SECONDS: Final = 10.0
HTTP_THREADS: Final = 2


class Unknown(Exception):
    """Whether it was accepted cannot be said."""


class Refused(Exception):
    """It was not accepted."""


class Dispatcher:
    """Dispatches tasks in their order, as far as it is allowed.

    Args:
        connections: of the system, through the proxies.
        api_port: of the API.
        history: is told.
        tasks: all of them.
    """

    def __init__(self, connections: Connections, api_port: int, history: History, tasks: list[Task]) -> None:
        self._connections = connections
        self._api_port = api_port
        self._history = history
        self._tasks = tasks
        self._ids: dict[str, str] = {}
        self._over_http: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._allowed = threading.Condition()
        self._upto = self._begun = 0
        self._stopped = False
        self._ended = 0
        self.in_flight = 0
        """Requests that the API has not answered."""
        self._threads = [threading.Thread(target=self._run, name="dispatcher", daemon=True)]
        self._threads += [
            threading.Thread(target=self._run_http, name=f"http-{n}", daemon=True) for n in range(HTTP_THREADS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def allow(self, upto: int) -> None:
        """Dispatch so many of the tasks in all, not more."""
        with self._allowed:
            self._upto = max(self._upto, upto)
            self._allowed.notify_all()

    @property
    def is_waiting(self) -> bool:
        """Whether all has been dispatched that may be; of what goes over HTTP, begun."""
        return self._begun >= min(self._upto, len(self._tasks))

    def finish(self, still_seconds: float) -> bool:
        """Wait until all is dispatched; False if nothing was for so long, and what is left stays undispatched."""
        self.allow(len(self._tasks))
        left = wait_down(self._left, still_seconds, PAUSE_SECONDS / 5)
        self._stopped = True
        return left == 0

    def _left(self) -> int:
        return len(self._tasks) - self._ended + sum(thread.is_alive() for thread in self._threads)

    def dispatch_now(self, tasks: list[Task]) -> None:
        """Dispatch these in the caller's thread, whatever else waits."""
        for task in tasks:
            self._until_accepted(task, self._in_python)

    def _run(self) -> None:
        for number, task in enumerate(self._tasks):
            with self._allowed:
                self._allowed.wait_for(lambda number=number: number < self._upto or self._stopped)  # type: ignore[misc]
            if self._stopped:
                break
            if task.over_http:
                self._over_http.put(task)
            else:
                self._in_turn(task, self._in_python)
            self._begun = number + 1
        for _ in range(HTTP_THREADS):
            self._over_http.put(None)

    def _run_http(self) -> None:
        while task := self._over_http.get():
            self._in_turn(task, self._by_request)

    def _in_turn(self, task: Task, how: Callable[[Task, dict[str, Any]], str]) -> None:
        self._until_accepted(task, how)
        with self._allowed:
            self._ended += 1

    def _until_accepted(self, task: Task, how: Callable[[Task, dict[str, Any]], str]) -> None:
        """As callers do it who must: again, as a job of its own, until it is accepted for sure.

        What there must be one of is dispatched again as the same, and even after it was accepted.
        """
        tries = accepted = 0
        while not self._stopped:
            key = f"{task.key}.{tries}" if tries and not task.once else task.key
            about = {"effects": task.effects, "ends": task.ends, "limits": task.limits, "stops": task.stops}
            self._history.say("dispatch_invoked", key=key, once=task.once, **about)
            try:
                job_id = how(task, {**task.payload, "key": key})
            except Unknown as error:
                self._history.say("dispatch_unknown", key=key, error=str(error))
            except Refused as error:
                self._history.say("dispatch_refused", key=key, error=str(error))
            else:
                self._history.say("dispatch_accepted", key=key, id=job_id, via="http" if task.over_http else "python")
                self._ids[task.key] = job_id
                if task.cancel:
                    cancel_for_sure(self._connections, self._history, key, job_id, lambda: self._stopped)
                accepted += 1
                if not task.once or accepted == ONCE_TIMES:
                    return
                continue
            tries += 1
            time.sleep(PAUSE_SECONDS)

    def _in_python(self, task: Task, payload: dict[str, Any]) -> str:
        options: dict[str, Any] = {"queue": task.queue}
        if task.after in self._ids:
            options["after"] = self._ids[task.after]
        if task.kind == "keyed":
            options |= {"idempotency_key": task.key, "idempotency_scope": "api"}
        if task.kind == "expiring":
            options["expires_in"] = EXPIRES_SECONDS
        job_class = find_class(task.job_type)
        try:
            if job_class is None:
                options = {"queue": task.queue}
                request = Request(task.job_type, json.dumps(payload), Options().but(**options), has_on_failed=False)
                return str(dispatch([request], into=self._connections)[0].id)
            ready = job_class.set(**options)
            handle = ready.dispatch_in(task.delay, **payload) if task.delay else ready.dispatch(**payload)
            return str(handle.id)
        except DispatchRefused as error:
            raise Refused(f"{type(error).__name__}: {error}") from error
        except Exception as error:
            raise Unknown(f"{type(error).__name__}: {error}") from error

    def _by_request(self, task: Task, payload: dict[str, Any]) -> str:
        body: dict[str, Any] = {"job": task.job_type, "payload": payload, "queue": task.queue}
        if task.delay:
            body["delay"] = task.delay
        if task.after in self._ids:
            body["after"] = [self._ids[task.after]]
        begun = time.time()
        self.in_flight += 1
        try:
            status, answer = self._ask(json.dumps(body), {"Idempotency-Key": task.key} if task.kind == "keyed" else {})
        except ConnectionRefusedError as error:
            raise Refused(f"nobody listens: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unknown(f"{type(error).__name__}: {error}") from error
        finally:
            self.in_flight -= 1
        self._history.say(
            "measured", name="API answer" if status == 201 else f"API answer {status}", seconds=time.time() - begun
        )
        if status == 201:
            return str(json.loads(answer)["job_id"])
        if 400 <= status < 500:
            raise Refused(f"{status}: {answer[:200]}")
        raise Unknown(f"{status}: {answer[:200]}")

    def _ask(self, body: str, headers: dict[str, str]) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self._api_port, timeout=HTTP_SECONDS)
        try:
            connection.request("POST", "/create-jobs", body, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


def find_class(job_type: str) -> type[BaseJob] | None:
    """The class of a type; None for one that nobody knows."""
    return getattr(chaos_jobs, job_type, None) or getattr(chaos_new_jobs, job_type, None)
