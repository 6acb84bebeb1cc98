"""The embedded demo: a small multilingual model, ten languages of text, facts, and the main job on them."""

from ..evaluation.readers import load_facts
from ..studies.planted import Planted, planted_model, planted_text
from .job import CONTINUED, LAPE, LAYOUT, fact_prompts, run_demo

__all__ = [
    "CONTINUED",
    "LAPE",
    "LAYOUT",
    "Planted",
    "fact_prompts",
    "load_facts",
    "planted_model",
    "planted_text",
    "run_demo",
]
