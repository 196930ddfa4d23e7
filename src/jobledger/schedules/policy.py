"""Decides which due fire times are fired. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from jobledger.schedules.definition import CatchUp
from jobledger.schedules.triggers import INSTANT, Trigger, between, last_between

MOST_AT_ONCE: Final = 100
"""Most fire times of one schedule that one pass fires; the next pass continues."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """The decision about a schedule's due fire times.

    Attributes:
        fire: the fire times to fire, in this order.
        given_up_until: missed fire times up to this moment are not fired; None if there are none.
    """

    fire: tuple[datetime, ...] = ()
    given_up_until: datetime | None = None


def judge(
    trigger: Trigger,
    catch_up: CatchUp,
    max_lateness_seconds: float | None,
    decided_until: datetime,
    now: datetime,
    grace_seconds: float,
    most: int = MOST_AT_ONCE,
) -> Ruling:
    """Decide about the fire times after `decided_until` up to `now`.

    A fire time counts as on time for `grace_seconds`, which a busy or restarting scheduler may need. After that it is
    missed, and the policy decides.

    Args:
        trigger: computes the fire times.
        catch_up: the schedule's policy.
        max_lateness_seconds: no fire time is fired later than this; None for no limit.
        decided_until: all fire times up to this moment are decided.
        now: the time by the database's clock.
        grace_seconds: time after a fire time in which it counts as on time.
        most: most fire times to fire at once.
    """
    first = trigger.next_after(decided_until)
    if first is None or first > now:
        return Ruling()
    oldest = decided_until
    if max_lateness_seconds is not None:
        oldest = max(oldest, now - timedelta(seconds=max_lateness_seconds) - INSTANT)
    missed_until = max(oldest, now - timedelta(seconds=grace_seconds) - INSTANT)
    if catch_up is CatchUp.ALL:
        fire = tuple(between(trigger, oldest, now, most))
    else:
        fire = tuple(between(trigger, missed_until, now, most))
        if not fire and catch_up is CatchUp.LATEST:
            latest = last_between(trigger, oldest, missed_until)
            fire = (latest,) if latest is not None else ()
    if not fire:
        return Ruling(given_up_until=missed_until)
    return Ruling(fire, fire[0] - INSTANT if first < fire[0] else None)
