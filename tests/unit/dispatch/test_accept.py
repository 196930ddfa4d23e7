"""How the time of a dispatch that somebody waits for is shared out."""

import pytest

from jobledger.dispatch.accept import SHORTEST_SECONDS, _limits


@pytest.mark.parametrize(
    ("within", "spent", "deadline", "patience"),
    [
        (1.5, 0.0, 1.5, 1.0),
        (1.5, 0.3, 1.2, 0.7),
        (0.1, 0.0, 0.1, 0.0),
        (0.1, 0.4, SHORTEST_SECONDS, 0.0),
    ],
)
def test_a_transaction_has_what_is_left_and_a_rival_less(
    within: float, spent: float, deadline: float, patience: float
) -> None:
    assert _limits([], within, spent) == pytest.approx((deadline, patience))
