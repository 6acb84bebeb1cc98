"""The reference: one page per subject, one entry for each public name, and nothing else."""

from collections.abc import Iterator

import mi_multilingual as mm

SUBJECTS = {
    "text-and-models": ("Models, text, nouns", ("models", "corpora", "tokens", "languages", "neurons", "storage")),
    "evidence": ("Evidence", ("evidence",)),
    "detectors": ("Detectors", ("detectors",)),
    "patching": ("Interventions", ("patching",)),
    "analysis": ("Analysis", ("analysis",)),
    "evaluation": ("Evaluation", ("evaluation",)),
    "studies": ("Studies", ("studies", "tuning", "training")),
    "experiments": ("Experiments", ("experiments",)),
    "plots": ("Figures", ("plots",)),
    "report": ("Report and demo", ("report", "demo")),
}
"""Page -> its title, and the modules and packages whose names it lists."""
BY_PACKAGE = ("experiments", "plots")
"""Packages whose names are not those of `mi_multilingual`, but of the package itself."""


def public_names() -> dict[str, str]:
    """Where users find a name -> where it is defined: `mi_multilingual.lape` -> `mi_multilingual.detectors.lape.lape`.

    The names of `mi_multilingual`, and those of its packages that list their own.
    """
    homes = {f"mi_multilingual.{name}": (getattr(mm, name), home) for name, home in mm.HOMES.items()}
    for package in BY_PACKAGE:
        module = getattr(mm, package)
        homes |= {f"{module.__name__}.{name}": (getattr(module, name), package) for name in module.__all__}
    # Constants do not know where they are defined.
    found = {used: getattr(value, "__module__", f"mi_multilingual.{home}") for used, (value, home) in homes.items()}
    return {used: f"{home}.{used.rpartition('.')[2]}" for used, home in found.items()}


def pages() -> dict[str, str]:
    """Every page of the reference, by its path in the site."""
    return {f"api/{page}.md": "\n\n".join(entries(*subject)) + "\n" for page, subject in SUBJECTS.items()}


def entries(title: str, packages: tuple[str, ...]) -> Iterator[str]:
    """A heading, and a block of mkdocstrings for each name, those that most users need first."""
    yield f"# {title}"
    most_used = {f"mi_multilingual.{name}" for name in mm.__all__}
    own = {used: home for used, home in public_names().items() if home.split(".")[1] in packages}
    for used in sorted(own, key=lambda used: used not in most_used):
        heading = used.replace("mi_multilingual", "mm", 1)
        yield f"::: {own[used]}\n    options:\n      heading: {heading}"
