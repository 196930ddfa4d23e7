"""Writes the figures of docs/reliability.md: `scripts/chaos-report [.chaos/results.jsonl]`.

The results of all runs that were ever reported are kept beside the page, and new ones are added to them.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from classes import CLASSES
from driver import FULL_SETTINGS, SHORT_SETTINGS
from goals import GOALS
from harness import REPOSITORY

Result = dict[str, Any]

PAGE: Final = REPOSITORY / "docs" / "reliability.md"
KEPT: Final = REPOSITORY / "docs" / "reliability-results.jsonl"
NEW: Final = REPOSITORY / ".chaos" / "results.jsonl"
BEGIN: Final = "<!-- results: begin (scripts/chaos-report writes this) -->"
END: Final = "<!-- results: end -->"

CLASS_HEAD: Final = """\
| class | what is done | jobs | times done | lost | doubled | slowest recovery (p99; goal) | date, seed |
|---|---|---|---|---|---|---|---|"""
NUMBERS_HEAD: Final = """\
| what | goal | slowest | p99 | times | in |
|---|---|---|---|---|---|"""


WHICH_STANDS: Final = """\
A row is of the last run of the largest size that its class has had, and there is another one for each kind of run with
other faults than the class plans. "Violated" names all runs, of whatever size, that no run of at least their size has
followed in which all was well."""


def latest(lines: Iterable[str]) -> dict[str, Result]:
    """The result that stands for each class: its last run of the largest size.

    A run that was violated, and that no good one of at least its size has followed, is never hidden: it stands itself,
    or is among `violated` or `besides` of the one that stands: `besides` are the last runs with other faults than the
    class plans.
    """
    runs: dict[str, list[Result]] = {}
    for line in lines:
        result: Result = json.loads(line)
        runs.setdefault(result["class"], []).append(result)
    return {name: _standing(of_class) for name, of_class in runs.items()}


def tables(results: dict[str, Result]) -> str:
    """Both tables, and what they are of, as Markdown."""
    ran = [result for result in results.values() if "skipped" not in result]
    rows = []
    for name, one in CLASSES.items():
        rows.append(_class_row(name, one.what, results.get(name)))
        rows += [_class_row(name, one.what, other) for other in results.get(name, {}).get("besides", [])]
    numbers = [row for name in GOALS if (row := _number_row(name, ran))]
    parts = ["\n".join([CLASS_HEAD, *rows]), WHICH_STANDS]
    if numbers:
        parts.append("\n".join([NUMBERS_HEAD, *numbers]))
    if ran:
        jobs, faults = (sum(result[name] for result in ran) for name in ("jobs", "faults"))
        commits = ", ".join(sorted({result["commit"] for result in ran}))
        machines = "; ".join(sorted({result["machine"] for result in ran}))
        parts.append(f"In all {jobs:,} jobs and {faults:,} faults; commit {commits}; on {machines}.")
    return "\n\n".join(parts)


def written_into(page: str, text: str) -> str:
    """The page with this text between its marks.

    Raises:
        ValueError: the page has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def _standing(runs: list[Result]) -> Result:
    stands = max(runs, key=_size)  # the first of the largest
    stands = next(one for one in reversed(runs) if _size(one) == _size(stands))
    violated = [
        one
        for number, one in enumerate(runs)
        if not _is_well(one) and not any(_is_well(later) and _size(later) >= _size(one) for later in runs[number + 1 :])
    ]
    unlike = {words: one for one in runs if (words := _unlike_its_class(one))}
    besides = [one for one in unlike.values() if one is not stands]
    return stands | {"violated": [one for one in violated if one not in (stands, *besides)], "besides": besides}


def _is_well(result: Result) -> bool:
    return "skipped" in result or bool(result["ok"])


def _size(result: Result) -> tuple[int, int]:
    """Of what weight a run is: one that was planned as its class is, one with other faults, a short one, none; among
    equals by its jobs, of which a whole run has no more than its class."""
    if "skipped" in result:
        return 0, 0
    weight = 1 if result["short"] else 2 if _unlike_its_class(result) else 3
    return weight, min(result.get("ordered", result["jobs"]), CLASSES[result["class"]].jobs)


def _unlike_its_class(result: Result) -> str:
    """What is otherwise in a run than in the plan of its class, in words. Lines of old do not say: as planned."""
    if result.get("soak_minutes"):
        return f"for {result['soak_minutes']:g} min"
    return f"outages of {result['outage']:g} s" if result.get("outage") else ""


def _lease(result: Result) -> float:
    return (SHORT_SETTINGS if result["short"] else FULL_SETTINGS)["lease_seconds"]


def _class_row(name: str, what: str, result: Result | None) -> str:
    if result is None:
        return f"| {name} | {what} | not run yet | | | | | |"
    if "skipped" in result:
        return f"| {name} | {what} | not run: {result['skipped']} | | | | | |"
    what += " (short run, lease 3 s)" if result["short"] else ""
    what += f" ({_unlike_its_class(result)})" if _unlike_its_class(result) else ""
    what += "" if result["ok"] else f" — **{result['violations']} violations**"
    for one in result.get("violated", []):
        of = f"{one['jobs']:,} jobs, {one['date']}, {one['seed']}"
        what += f" — **violated: {one['violations']} violations with {of}**"
    figures = [f"{result[column]:,}" for column in ("jobs", "faults", "lost", "doubled")]
    return f"| {name} | {what} | {' | '.join(figures)} | {_slowest(result)} | {result['date']}, {result['seed']} |"


def _slowest(result: Result) -> str:
    """What people and programs ask for aside: if the class does not judge all recoveries, the slowest of the others;
    otherwise what the class is about, the first goal in order that was measured."""
    judged, others = [], []
    for name, goal in GOALS.items():
        if name in result["recovery"] and not name.startswith(("API", "cancel")):
            longest, p99, _ = result["recovery"][name]
            limit = goal.seconds(_lease(result), result["class"])
            (others if limit is None else judged).append((longest, p99, limit))
    if others:
        longest, p99, _ = max(others)
        return f"{longest:.1f} s ({p99:.1f}; not judged)"
    return f"{judged[0][0]:.1f} s ({judged[0][1]:.1f}; {judged[0][2]:g})" if judged else ""


def _number_row(name: str, ran: list[Result]) -> str:
    """Over all full runs: the slowest of each, and the worst percentile. Under a short lease other goals hold."""
    goal, seen = GOALS[name], []
    for result in ran:
        limit = goal.seconds(_lease(result), result["class"])
        if name in result["recovery"] and limit is not None and not result["short"]:
            seen.append((limit, result["class"], *result["recovery"][name]))
    if not seen:
        return ""
    limits = " to ".join(f"{limit:g}" for limit in sorted({one[0] for one in seen}))
    words = name.replace("->", "→")
    of = " (p99)" if goal.of == "p99" else ""
    longest, p99, times = max(one[2] for one in seen), max(one[3] for one in seen), sum(one[4] for one in seen)
    return f"| {words} | {limits} s{of} | {longest:.2f} s | {p99:.2f} s | {times:,} | {', '.join(o[1] for o in seen)} |"


def together(kept: Iterable[str], new: Iterable[str]) -> list[str]:
    """The lines of both, each once, in order."""
    return list(dict.fromkeys([*kept, *new]))


def main(new: Path) -> None:
    """Keep the new results, and write the page anew."""
    lines = together(_lines(KEPT), _lines(new))
    KEPT.write_text("".join(f"{line}\n" for line in lines))
    PAGE.write_text(written_into(PAGE.read_text(), tables(latest(lines))))


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else NEW)
