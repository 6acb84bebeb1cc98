"""The embedded demo: a small multilingual model, ten languages of text, facts, and the main job on them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .job import CONTINUED, LAPE, READING, fact_prompts, run_demo

__all__ = ["CONTINUED", "LAPE", "READING", "fact_prompts", "run_demo"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.job"), name)
