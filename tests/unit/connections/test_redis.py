"""Which answers of Redis say that it refuses for now; the words are those of real servers of versions 6.2 and 7."""

import pytest
import redis
from redis.exceptions import ClusterDownError, ExecAbortError, MasterDownError

from jobledger.connections.redis import is_refusal

OOM = "OOM command not allowed when used memory > 'maxmemory'."


@pytest.mark.parametrize(
    "error",
    [
        redis.ResponseError("NOREPLICAS Not enough good replicas to write."),
        redis.ResponseError("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist."),
        redis.ResponseError("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."),
        redis.ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed"),
        redis.ResponseError(OOM),
        redis.OutOfMemoryError(OOM.removeprefix("OOM ")),
        redis.ReadOnlyError("You can't write against a read only replica."),
        redis.BusyLoadingError("Redis is loading the dataset in memory"),
        ClusterDownError("CLUSTERDOWN The cluster is down"),
        MasterDownError("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
        redis.ResponseError("Command # 2 (SET a 1) of pipeline caused error: NOREPLICAS Not enough good replicas."),
        ExecAbortError(f"Transaction discarded because of: {OOM}"),
        redis.ResponseError(f"Error running script (call to f_1b2): @user_script:5: @user_script: 5: -{OOM} "),
        redis.ResponseError("OOM command not allowed when used memory > 'maxmemory'. script: 1b2, on @user_script:1."),
    ],
)
def test_what_passes_is_a_refusal(error: redis.RedisError) -> None:
    assert is_refusal(error)


@pytest.mark.parametrize(
    "error",
    [
        redis.ResponseError("BUSYGROUP Consumer Group name already exists"),
        redis.ResponseError("BUSYKEY Target key name already exists."),
        redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        redis.ResponseError("Command # 1 (SET a OOM) of pipeline caused error: WRONGTYPE Operation against a key"),
        redis.exceptions.NoPermissionError("this user has no permissions to run the 'set' command"),
        redis.AuthenticationError("invalid username-password pair"),
        redis.ConnectionError("OOM of another kind"),
        ValueError(OOM),
    ],
)
def test_what_waiting_does_not_mend_is_none(error: Exception) -> None:
    assert not is_refusal(error)
