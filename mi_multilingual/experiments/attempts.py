"""When work that failed is tried again: one rule, in one process as on a cluster."""

ATTEMPTS = 3
"""Times that a piece of work is tried before it counts as failed."""


def tried_again(error: BaseException, attempt: int) -> bool:
    """Whether work that failed in this attempt, counted from 1, gets another.

    A ValueError says what is wrong with the input, which is as wrong the next time. Anything else, such as a disk that
    did not answer or a worker that died, may pass.
    """
    return attempt < ATTEMPTS and not isinstance(error, ValueError)


def in_one_line(error: BaseException) -> str:
    """The kind of error and what it says, for a list of failures."""
    return " ".join(f"{type(error).__name__}: {error}".split())
