"""What a whole study works on when it is run by its name: in the demo, in a sweep, on the command line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..corpora import Corpus
from ..detectors.lape import lape
from ..evidence.activations import ActivationStats, record
from ..models.hooked import HookedModel
from ..neurons import NeuronSet
from ..tokens import Reading


@dataclass(frozen=True, eq=False)
class Given:
    """A model, text, neurons and the study's settings; what needs a pass over text is made when it is asked for."""

    model: HookedModel
    identify: Corpus
    """Text that neurons are found on."""
    evaluate: Corpus
    """Text that effects are measured on; document number i says the same in every language, unless the study says
    that it does not need that."""
    reading: Reading
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All settings of the study's row in `STUDIES`, each with its value."""
    seeds: Sequence[int] = (0, 1, 2)
    """Of everything random, one draw each."""
    lape: Mapping[str, float] = field(default_factory=dict)
    """How `lape` finds the language neurons."""
    recorded: Callable[[], ActivationStats] | None = None
    """Where statistics of `identify` come from that were recorded before; they are recorded where there is none."""
    progress: bool = True

    @cached_property
    def stats(self) -> ActivationStats:
        """Statistics of `identify`, at the gate."""
        if self.recorded is not None:
            return self.recorded()
        return record(self.model, self.identify, reading=self.reading, progress=self.progress)

    @cached_property
    def neurons(self) -> NeuronSet:
        """The language neurons by LAPE."""
        return lape(self.stats, **self.lape)
