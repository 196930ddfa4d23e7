"""Formats a log record as a line, for people or as JSON. No text in it can make it look like several records.

    2026-01-31T09:00:00.123Z INFO    some.library [job_id=… … status=started]: event key='value'
      | a traceback follows on lines that begin like this

Line breaks, control characters, bidirectional marks and lone surrogates are escaped as in a Python literal. Passwords
in URLs are hidden.
"""

import json
import logging
import re
import time
from collections.abc import Mapping, MutableMapping
from datetime import date
from decimal import Decimal
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

from structlog.contextvars import get_contextvars
from structlog.processors import format_exc_info
from structlog.stdlib import ProcessorFormatter

from jobledger.observe.log_run import current_run

Event = MutableMapping[str, Any]

CONTINUATION: Final = "\n  | "

# C0, DEL and C1 controls; bidirectional marks; line and paragraph separators; lone surrogates.
_HOSTILE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NOT_ASCII: Final = re.compile("[^\x20-\x7e]")
_COLOUR: Final = re.compile("\x1b\\[[0-9;]*m")
# After "://": a name, and a password up to the last @ of the word; but not a port and its path.
_PASSWORD: Final = re.compile(r"([^\s:/@]*:)(?!\d{1,5}(?:[/?#\s\\\"'),]|$))\S+@")
_JOB_ID: Final = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_OF_EVERY_RECORD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_COLOUR_MESSAGE: Final = "color_message"  # uvicorn's second copy of its message, with escape codes
_RQ: Final = "rq."


class LineFormatter(ProcessorFormatter):
    """Formats a record as one line, followed by marked lines for a traceback.

    Args:
        layout: "text", "json", or "tail" for lines that are stored with an attempt, which do not repeat its fields.
    """

    def __init__(self, layout: str) -> None:
        render = {"text": _text_line, "json": _json_line, "tail": _tail_line}[layout]
        super().__init__(processors=[render], foreign_pre_chain=[_read_foreign], pass_foreign_args=True)


def event_text(event: Mapping[str, Any]) -> str:
    """An event and its values as text, with a traceback on lines of its own."""
    values = dict(event)
    trace = values.pop("exception", None)
    return _one_record(f"{_printed(values.pop('event', ''))}{_pairs(values)}", trace)


def labelled_json(program: str, line: str) -> str:
    """A line that another program wrote, as a JSON object that names the program.

    Args:
        program: its name.
        line: a JSON object; other text becomes the event of a new object.
    """
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        said = {"time": _moment(time.time()), "event": line}
    known = {"program": program}
    return _as_json(known, _own(said, known))


def written_out(text: str) -> str:
    """The text on one line, with every character escaped that could affect a screen or a log."""
    return text if text.isprintable() else _HOSTILE.sub(lambda found: _literal(found[0]), text)


def without_passwords(text: str) -> str:
    """The text with *** for passwords in URLs. Takes linear time, whatever the text."""
    if "://" not in text or "@" not in text:
        return text
    first, *others = text.split("://")
    return "://".join([first, *(_hidden(other) for other in others)])


def _hidden(after_scheme: str) -> str:
    found = _PASSWORD.match(after_scheme)
    return f"{found[1]}***@{after_scheme[found.end() :]}" if found else after_scheme


def _read_foreign(_logger: Any, _method: str, event: Event) -> Event:
    """Read the values of a standard `logging` record besides its message."""
    record: logging.LogRecord = event["_record"]
    args = event.pop("positional_args")
    if isinstance(record.msg, str) and record.msg.endswith("\n%s") and isinstance(args, tuple) and args:
        # RQ appends a traceback to its message; it is shown as a traceback.
        event["event"], event["exception"] = record.msg[:-3] % args[:-1], args[-1]
    if "exc_info" in event:
        format_exc_info(_logger, _method, event)
    for key in [key for key in record.__dict__ if key not in _OF_EVERY_RECORD]:
        if key != _COLOUR_MESSAGE:
            event[key if key not in event else f"own_{key}"] = record.__dict__[key]
    if record.name.startswith(_RQ):
        _read_rq(event, args)
    return event


def _read_rq(event: Event, args: Any) -> None:
    """Read a record of RQ, which colours words if standard output is a terminal, and names the job in its message."""
    event["event"] = _COLOUR.sub("", event["event"])
    if "job_id" in event or current_run() is not None or not isinstance(args, tuple):
        return
    named = [arg for arg in args[1:] if isinstance(arg, str) and len(arg) == 36 and _JOB_ID.fullmatch(arg)]
    if len(named) == 1:
        event["job_id"] = named[0]


def _text_line(_logger: Any, _method: str, event: Event) -> str:
    record, about, said, trace = _parts(event)
    bracket = f" [{' '.join(f'{key}={value}' for key, value in about.items())}]" if about else ""
    head = f"{_moment(record.created)} {record.levelname:<7} {record.name}{bracket}: {said}"
    return _one_record(f"{head}{_pairs(_own(event, about))}", trace)


def _tail_line(_logger: Any, _method: str, event: Event) -> str:
    record, about, said, trace = _parts(event)
    return _one_record(f"{record.levelname} {record.name}: {said}{_pairs(_own(event, about))}", trace)


def _json_line(_logger: Any, _method: str, event: Event) -> str:
    record, about, said, trace = _parts(event)
    known = {
        "time": _moment(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": said,
        **about,
    }
    own = _own(event, known | {"exception": None})
    if trace is not None:
        known["exception"] = _printed(trace)
    return _as_json(known, own)


def _parts(event: Event) -> tuple[logging.LogRecord, dict[str, Any], str, Any]:
    """The record, the fields of its attempt, the message and the traceback; only other values stay in the event."""
    record: logging.LogRecord = event.pop("_record")
    del event["_from_structlog"]
    run = current_run()
    about = run.fields() if run is not None else {}
    return record, about, _printed(event.pop("event", "")), event.pop("exception", None)


def _own(event: Event, known: Mapping[str, Any]) -> dict[str, Any]:
    """The line's own values; a value with the name of a common field is renamed."""
    own: dict[str, Any] = {}
    for key, value in {**get_contextvars(), **event}.items():
        if key not in known:
            own[key] = value
        elif not (isinstance(value, str | int) and value == known[key]):
            own[f"own_{key}"] = value
    return own


def _pairs(values: Mapping[str, Any]) -> str:
    return "".join(f" {key if key.isidentifier() else repr(key)}={represented(value)}" for key, value in values.items())


def _one_record(line: str, trace: Any) -> str:
    text = without_passwords(written_out(line))
    if not trace:
        return text
    lines = _printed(trace).rstrip().split("\n")
    return CONTINUATION.join([text, *(without_passwords(written_out(line)) for line in lines)])


def _as_json(known: dict[str, Any], own: dict[str, Any]) -> str:
    try:
        line = _encoder.encode({**known, **own})
    except (TypeError, ValueError, RecursionError):  # a key that is no text, an infinite number, a circular reference
        shown = {key: value if isinstance(value, str) else represented(value) for key, value in own.items()}
        line = _encoder.encode({**known, **shown})
    if not line.isascii() or "\x7f" in line:
        line = _NOT_ASCII.sub(lambda found: _json_literal(found[0]), line)
    return without_passwords(line)


def _in_words(value: Any) -> str:
    """The text for a value without a JSON form."""
    if isinstance(value, date):
        return value.isoformat()
    return _printed(value) if isinstance(value, UUID | Decimal | PurePath) else represented(value)


def _printed(value: Any) -> str:
    """The text of any value; `__str__` may raise, and logging must not."""
    try:
        return str(value)
    except Exception as unprintable:
        return f"<{type(value).__name__} that cannot be printed: {type(unprintable).__name__}>"


def represented(value: Any) -> str:
    """The `repr` of any value, also if `__repr__` raises."""
    try:
        return repr(value)
    except Exception as unprintable:
        return f"<{type(value).__name__} that cannot be printed: {type(unprintable).__name__}>"


def _literal(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _json_literal(character: str) -> str:
    """JSON's escape of a character; for a lone surrogate, which many JSON parsers refuse, its escape as text."""
    if "\ud800" <= character <= "\udfff":
        return f"\\\\u{ord(character):04x}"
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"


def _moment(epoch: float) -> str:
    """ISO 8601, UTC, with milliseconds."""
    milliseconds = int(epoch * 1000)
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{seconds}.{milliseconds % 1000:03d}Z"


_encoder: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_in_words)
