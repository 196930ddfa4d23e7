"""What bare RQ runs; a module of its own, so that bare workers import nothing of ours."""


def noop(number: int) -> None:
    """Do nothing."""
