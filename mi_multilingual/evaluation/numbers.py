"""The number that a written answer ends with, in the digits and separators of any language."""

import re
from decimal import Decimal

_SEPARATORS = ".,'’ \u00a0\u202f"

_NUMBER = re.compile(
    rf"(?<!\d)(?:(?<![0-9A-Za-z)])[-−])?(?:[1-9]\d{{0,2}}([{_SEPARATORS}])\d{{3}}(?:\1\d{{3}})*(?!\d)|\d+)(?:[.,]\d+)?"
)
"""Digits of any script; a mark or space before exactly three digits groups thousands, other marks are decimal."""


def last_number(text: str) -> str:
    """The last number of the text in plain digits, "" without one: 1,234.50 and 1.234,5 and 1 234,5 are all 1234.5."""
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return ""
    last = numbers[-1]
    digits = last[0].replace("−", "-")
    if last[1]:
        digits = digits.replace(last[1], "")
    return format(Decimal(digits.replace(",", ".")).normalize(), "f")
