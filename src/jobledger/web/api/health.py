"""The state of the service."""

import asyncio
from typing import Final

import redis
from fastapi import APIRouter, Response

from jobledger.connections.default import Connections
from jobledger.errors import LedgerUnavailable
from jobledger.ledger.migrate import revisions
from jobledger.observe.health import LedgerState, Level, judge, look_at_ledger, look_at_redis
from jobledger.web.api.schemas import Health, RedisState
from jobledger.web.threads import BoundedThreads, TookTooLong

LOOK_SECONDS: Final = 1.5
LOOKS_AT_ONCE: Final = 2


def health_router(connections: Connections) -> APIRouter:
    """The route. Each server has its own threads, so that a frozen server does not block the look at the other."""
    router = APIRouter(tags=["health"])
    for_postgres = BoundedThreads("look-at-postgres", LOOKS_AT_ONCE, LOOK_SECONDS)
    for_redis = BoundedThreads("look-at-redis", LOOKS_AT_ONCE, LOOK_SECONDS)
    known_revisions = revisions()

    async def ledger_state() -> LedgerState | None:
        try:
            return await for_postgres.run(lambda: look_at_ledger(connections, known_revisions))
        except (LedgerUnavailable, TookTooLong):
            return None

    async def redis_state() -> RedisState:
        try:
            await for_redis.run(lambda: look_at_redis(connections))
        except redis.ResponseError:
            return "refuses"
        except (redis.RedisError, TookTooLong):
            return "away"
        return "ok"

    @router.get("/health", responses={503: {"model": Health, "description": "No job can be accepted."}})
    async def health(response: Response) -> Health:
        """200 if jobs can be accepted, else 503; "degraded" if they will start late or are not repaired."""
        ledger, from_redis = await asyncio.gather(ledger_state(), redis_state())
        level = judge(ledger, from_redis == "ok")
        counted = ledger.counted if ledger else None
        if level is Level.UNAVAILABLE:
            response.status_code = 503
        return Health(
            status=level,
            postgres="ok" if ledger else "away",
            redis=from_redis,
            schema_state=ledger.schema if ledger else None,
            schema_revision=ledger.revision if ledger else None,
            last_sweep_age_seconds=ledger.last_sweep_age_seconds if ledger else None,
            clock_set_back_seconds=ledger.set_back.by_seconds if ledger and ledger.set_back else None,
            last_count_age_seconds=counted.age_seconds if counted else None,
            last_count=dict(counted.found) if counted else None,
        )

    return router
