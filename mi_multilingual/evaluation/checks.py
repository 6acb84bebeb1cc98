"""What several measures check of their arguments."""

from collections.abc import Sequence
from typing import Any


def check_list(strings: Sequence[Any], name: str) -> None:
    """Raise where one string is given for a list of them."""
    if isinstance(strings, str):
        raise ValueError(f"{name} must be a list of strings, got {strings[:40]!r}; give [{strings[:40]!r}]")


def check_same_length(left: Sequence[Any], right: Sequence[Any], left_name: str, right_name: str) -> None:
    """Raise where two lists do not say something of the same things."""
    if len(left) != len(right):
        raise ValueError(
            f"{left_name} and {right_name} must be equally many, got {len(left)} {left_name} but {len(right)} "
            f"{right_name}; give one of each for every text"
        )
