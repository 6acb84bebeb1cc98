"""Many measurements from one file: what to run, running it so that nothing is lost, and reading it back."""

from .cluster import on_ray
from .config import Study
from .loading import load_study
from .planning import Plan, plan
from .summary import effects
from .sweep import Progress, results, resume, run, status, study_tables
from .whole import WholeStudies

__all__ = ["Plan", "Progress", "Study", "WholeStudies", "effects", "load_study", "on_ray", "plan", "results", "resume"]
__all__ += ["run", "status", "study_tables"]
