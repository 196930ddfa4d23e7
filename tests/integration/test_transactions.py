"""Dispatching in the caller's transaction: the row lives and dies with it, and the push waits for its commit."""

import asyncio
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from harness import one_value
from jobledger import Connections, JobHandle, JobNotFound, JobStatus, OptionError, ParentNotFound
from sample_jobs import Echo

pytestmark = pytest.mark.one_database  # each looks at jobs of its own


class Model(DeclarativeBase): ...


class Order(Model):
    """What an application writes in the same transaction."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def session(connections: Connections) -> Iterator[Session]:
    Model.metadata.drop_all(connections.engine)
    Model.metadata.create_all(connections.engine)
    with Session(connections.engine) as session:
        yield session


def is_accepted(connections: Connections, handle: JobHandle) -> bool:
    """Whether the row is there for everybody."""
    return bool(one_value(connections, "SELECT count(*) FROM job_statuses WHERE id = :id", id=handle.id))


def pushed(connections: Connections) -> list[str]:
    """The ids in the Redis list of the default queue, first to be taken first."""
    return [one.decode() for one in connections.redis.lrange("rq:queue:default", 0, -1)]


def test_before_the_commit_nobody_sees_the_job(connections: Connections, session: Session) -> None:
    handle = Echo.dispatch(session=session)

    assert handle.status is JobStatus.QUEUED
    assert not is_accepted(connections, handle)
    assert pushed(connections) == []
    with pytest.raises(JobNotFound):
        handle.refresh()


def test_after_the_commit_it_is_accepted_and_pushed(connections: Connections, session: Session) -> None:
    session.add(Order(id=1))
    handle = Echo.dispatch(session=session)

    session.commit()

    assert is_accepted(connections, handle)
    assert pushed(connections) == [str(handle.id)]
    assert one_value(connections, "SELECT count(*) FROM orders") == 1


def test_after_a_rollback_it_is_gone(connections: Connections, session: Session) -> None:
    session.add(Order(id=1))
    handle = Echo.dispatch(session=session)

    session.rollback()
    session.commit()

    assert not is_accepted(connections, handle)
    assert pushed(connections) == []


def test_a_session_that_is_closed_has_rolled_back(connections: Connections, session: Session) -> None:
    gone = Echo.dispatch(session=session)
    session.close()

    kept = Echo.dispatch(session=session)
    session.commit()

    assert not is_accepted(connections, gone)
    assert pushed(connections) == [str(kept.id)]


def test_each_transaction_of_a_session_pushes_its_own(connections: Connections, session: Session) -> None:
    first = Echo.dispatch(session=session)
    session.commit()
    gone = Echo.dispatch(session=session)
    session.rollback()
    second = Echo.dispatch(session=session)
    session.commit()
    session.commit()

    assert pushed(connections) == [str(first.id), str(second.id)]
    assert not is_accepted(connections, gone)


def test_two_sessions_do_not_push_for_each_other(connections: Connections, session: Session) -> None:
    with Session(connections.engine) as other:
        mine = Echo.dispatch(session=session)
        theirs = Echo.dispatch(session=other)
        other.commit()

        assert pushed(connections) == [str(theirs.id)]
    session.commit()
    assert pushed(connections) == [str(theirs.id), str(mine.id)]


# -- savepoints


def test_with_a_savepoint_that_is_rolled_back_its_jobs_are_gone(connections: Connections, session: Session) -> None:
    outside = Echo.dispatch(session=session)
    savepoint = session.begin_nested()
    inside = Echo.dispatch(session=session)
    savepoint.rollback()
    after = Echo.dispatch(session=session)
    session.commit()

    assert not is_accepted(connections, inside)
    assert pushed(connections) == [str(outside.id), str(after.id)]


def test_a_released_savepoint_pushes_nothing_before_the_commit(connections: Connections, session: Session) -> None:
    with session.begin_nested():
        inside = Echo.dispatch(session=session)

    assert pushed(connections) == []
    session.commit()
    assert pushed(connections) == [str(inside.id)]


def test_a_released_savepoint_is_gone_with_its_transaction(connections: Connections, session: Session) -> None:
    with session.begin_nested():
        inside = Echo.dispatch(session=session)
    session.rollback()
    session.commit()

    assert not is_accepted(connections, inside)
    assert pushed(connections) == []


def test_a_released_savepoint_is_gone_with_the_savepoint_around_it(connections: Connections, session: Session) -> None:
    outside = Echo.dispatch(session=session)
    outer = session.begin_nested()
    between = Echo.dispatch(session=session)
    with session.begin_nested():
        inside = Echo.dispatch(session=session)
    outer.rollback()
    session.commit()

    assert [is_accepted(connections, one) for one in (outside, between, inside)] == [True, False, False]
    assert pushed(connections) == [str(outside.id)]


def test_an_inner_savepoint_may_go_while_the_outer_one_stays(connections: Connections, session: Session) -> None:
    with session.begin_nested():
        between = Echo.dispatch(session=session)
        inner = session.begin_nested()
        inside = Echo.dispatch(session=session)
        inner.rollback()
    session.commit()

    assert not is_accepted(connections, inside)
    assert pushed(connections) == [str(between.id)]


# -- errors


def test_an_error_of_a_flush_takes_the_jobs_with_it(connections: Connections, session: Session) -> None:
    session.add(Order(id=1))
    session.commit()
    gone = Echo.dispatch(session=session)
    session.add(Order(id=1))

    with pytest.raises(sa.exc.IntegrityError):
        session.commit()
    session.rollback()
    kept = Echo.dispatch(session=session)
    session.commit()

    assert not is_accepted(connections, gone)
    assert pushed(connections) == [str(kept.id)]


def test_a_dispatch_that_is_refused_leaves_the_transaction_usable(connections: Connections, session: Session) -> None:
    session.add(Order(id=1))
    kept = Echo.dispatch(session=session)

    with pytest.raises(ParentNotFound):
        Echo.dispatch(session=session, after="01890000-0000-7000-8000-000000000001")
    session.commit()

    assert pushed(connections) == [str(kept.id)]
    assert one_value(connections, "SELECT count(*) FROM orders") == 1


def test_a_block_that_raises_takes_the_jobs_with_it(connections: Connections) -> None:
    def handle_request() -> None:
        with Session(connections.engine) as session, session.begin():
            Echo.dispatch(session=session)
            raise ZeroDivisionError

    before = one_value(connections, "SELECT count(*) FROM job_statuses")
    with pytest.raises(ZeroDivisionError):
        handle_request()

    assert one_value(connections, "SELECT count(*) FROM job_statuses") == before
    assert pushed(connections) == []


# -- kinds of sessions


def test_a_scoped_session_is_a_session(connections: Connections) -> None:
    scoped = scoped_session(sessionmaker(connections.engine))
    kept = Echo.dispatch(session=scoped)
    assert pushed(connections) == []
    scoped.commit()
    gone = Echo.dispatch(session=scoped)
    scoped.rollback()
    scoped.remove()

    assert pushed(connections) == [str(kept.id)]
    assert not is_accepted(connections, gone)


def test_a_block_that_begins_a_transaction_is_one(connections: Connections) -> None:
    with sessionmaker(connections.engine).begin() as session:
        handle = Echo.dispatch(session=session)
        assert pushed(connections) == []

    assert pushed(connections) == [str(handle.id)]


def test_several_jobs_of_a_transaction_are_pushed_in_their_order(connections: Connections, session: Session) -> None:
    first = Echo.dispatch(session=session)
    many = Echo.dispatch_many([{}, {}], session=session)
    later = Echo.dispatch_in("1h", session=session)
    session.commit()

    assert pushed(connections) == [str(one.id) for one in (first, *many)]
    assert later.refresh().status is JobStatus.SCHEDULED


@pytest.mark.parametrize("kind", ["session", "class"])
def test_what_is_no_session_is_refused(connections: Connections, kind: str) -> None:
    with pytest.raises(OptionError, match=r"say a SQLAlchemy Session"):
        Echo.dispatch(session=kind if kind == "session" else Session)  # type: ignore[arg-type]


def test_an_async_session_is_told_of_adispatch(connections: Connections) -> None:
    async def dispatch() -> None:
        async with AsyncSession() as session:
            Echo.dispatch(session=session)  # type: ignore[arg-type]

    with pytest.raises(OptionError, match=r"await X\.adispatch"):
        asyncio.run(dispatch())
