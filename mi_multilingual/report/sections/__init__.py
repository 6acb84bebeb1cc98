"""What the page shows: one row of SECTIONS for each section, made from the files of a run where they exist.

A file of this folder holds the sections of one subject: the columns of their tables, their figures, and their findings
in words. A new table of a run is a new row in the file of its subject.
"""

from . import (
    ablation,
    answers,
    deactivation,
    detectors,
    editing,
    layer_languages,
    neurons,
    sharing,
    experts,
    neurons,
    sharing,
    sharing_tasks,
    steering,
    sweeps,
    tuning,
)

SUBJECTS = (ablation, neurons, detectors, sharing, steering, deactivation, editing, tuning, sweeps, answers)
from . import (
    ablation,
    answers,
    deactivation,
    detectors,
    lape_tables,
    neurons,
    representations,
    sharing,
    steering,
    sweeps,
)

SUBJECTS = (
    ablation,
    lape_tables,
    neurons,
    representations,
    neurons,
    open_generation,
    sharing,
    steering,
    sweeps,
    translation,
    tuning,
)

SUBJECTS = (
    ablation,
    neurons,
    detectors,
    sharing,
    steering,
    deactivation,
    editing,
    tuning,
    layer_languages,
    sweeps,
    answers,
)
SUBJECTS = (ablation, neurons, detectors, sharing, sharing_tasks, experts, steering, deactivation, editing, tuning)
SUBJECTS += (sweeps, answers)
    open_generation,
    translation,
    deactivation,
    editing,
    tuning,
    sweeps,
    answers,
)
SECTIONS = tuple(section for subject in SUBJECTS for section in subject.SECTIONS)
"""Every section of the page, in its order."""
