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
    experts,
    lape_tables,
    layer_languages,
    neurons,
    open_generation,
    representations,
    sharing,
    sharing_tasks,
    steering,
    sweeps,
    translation,
    tuning,
)

SUBJECTS = (ablation, lape_tables, neurons, representations, layer_languages, detectors, sharing, sharing_tasks)
SUBJECTS += (experts, steering, open_generation, translation, deactivation, editing, tuning, sweeps, answers)
SECTIONS = tuple(section for subject in SUBJECTS for section in subject.SECTIONS)
"""Every section of the page, in its order."""
