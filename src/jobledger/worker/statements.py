"""Tells whether a job's SQL would end the transaction of its attempt.

Comments, literals and quoted names are skipped, as Postgres does it:
https://www.postgresql.org/docs/current/sql-syntax-lexical.html. The time is linear in the length of the text.
"""

import re
from itertools import pairwise
from typing import Final

_HAS_WORD: Final = re.compile(r"commit|end|abort|rollback|prepare", re.IGNORECASE)
_TOKEN: Final = re.compile(
    r"""
    --[^\n]* | /\*
    | [eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*"
    | (?P<tag>\$(?:[^\W\d]\w*)?\$) | (?P<word>[^\W\d][\w$]*) | (?P<end>;) | \s+ | .
    """,
    re.VERBOSE | re.DOTALL,
)
_BODY: Final = "atomic;"
_COMMENT: Final = re.compile(r"/\*|\*/")


def ends_transaction(sql: str) -> bool:
    """Whether one of the statements commits or rolls back the whole transaction.

    Args:
        sql: one or more statements, with or without placeholders.
    """
    if not _HAS_WORD.search(sql):
        return False
    statement: list[str] = []
    position = 0
    while position < len(sql):
        token = _TOKEN.match(sql, position)
        if token is None:  # not possible: the last alternative takes any character
            return False
        position = token.end()
        if token.group() == "/*":
            position = _end_of_comment(sql, position)
        elif token["tag"]:
            closed = sql.find(token["tag"], position)
            position = closed + len(token["tag"]) if closed >= 0 else len(sql)
        elif token["word"]:
            statement.append(token["word"].lower())
        elif token["end"]:
            if _ends(statement):
                return True
            # The semicolons of a function's body, `BEGIN ATOMIC ...; END`, separate no statements.
            begins = ("begin", "atomic") in pairwise(statement)
            goes_on = statement[:1] == [_BODY] and statement[1:2] != ["end"]
            statement = [_BODY] if begins or goes_on else []
    return _ends(statement)


def _end_of_comment(sql: str, position: int) -> int:
    """The position after a comment that has begun before; comments nest."""
    depth = 1
    for mark in _COMMENT.finditer(sql, position):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(sql)


def _ends(statement: list[str]) -> bool:
    match statement[:3]:
        case ["commit" | "end" | "abort", *_] | ["prepare", "transaction", *_]:
            return True
        case ["rollback", "to", *_] | ["rollback", "work" | "transaction", "to"]:
            return False
        case ["rollback", *_]:
            return True
        case _:
            return False
