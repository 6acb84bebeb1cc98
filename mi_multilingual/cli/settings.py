"""Settings of detectors as words of the command line."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..detectors.table import DETECTORS, Setting, checked_settings, detector_of, recordable, recordable_by_passes
from ..evidence.table import EVIDENCE


def typed(name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Settings of a detector with numbers as numbers, checked.

    Raises:
        ValueError: an unknown detector or setting, or a value that cannot be.
    """
    rows = detector_of(name).settings
    values = {key: _value_of(rows.get(key), value) for key, value in given.items()}
    checked = checked_settings(name, values)
    return {key: checked[key] for key in given}


def _value_of(row: Setting | None, text: str) -> float | str:
    """A word where the setting takes words, else a number if it is one."""
    if row is not None and not row.choices:
        try:
            return float(text)
        except ValueError:
            pass
    return text


def recording_options(
    kind: str, given: Mapping[str, str], *, site: str | None, batch_size: int | None, checkpoint: Any
) -> dict[str, Any]:
    """What the recording of a kind of evidence takes of what was asked for.

    Raises:
        ValueError: no such kind, or an option that it does not have.
    """
    if kind not in EVIDENCE:
        raise ValueError(f"--evidence must be one of {', '.join(EVIDENCE)}, got {kind!r}")
    row, settings = EVIDENCE[kind], _recorded_settings(kind)
    if unknown := [key for key in given if key not in settings]:
        raise ValueError(f"settings of {kind} must be among {', '.join(settings) or 'none'}, got {unknown[0]!r}")
    if site is not None and not row.site:
        raise ValueError(f"--site must be left out for {kind}, which is read at one place only, got {site!r}")
    if batch_size is not None and kind != "activations":
        raise ValueError(f"--batch-size must be left out for {kind}, which chooses its own, got {batch_size}")
    options = {key: settings[key].checked(key, _value_of(settings[key], text)) for key, text in given.items()}
    if site is not None:
        options["site"] = site
    if kind == "activations":
        options |= {"batch_size": batch_size or "auto", "checkpoint": checkpoint}
    return options


def _recorded_settings(kind: str) -> dict[str, Setting]:
    """Settings that detectors have, and that the recording of their evidence takes."""
    rows = [row.settings for row in DETECTORS.values() if row.evidence == kind]
    return {key: setting for settings in rows for key, setting in settings.items() if setting.recorded}


def compared_settings(names: Sequence[str] | None, given: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Detector -> its settings, from NAME.SETTING -> value.

    Raises:
        ValueError: a detector that cannot be compared, or a setting of none of those that are.
    """
    possible = recordable()
    names = list(names or recordable_by_passes())
    if others := [name for name in names if name not in possible]:
        raise ValueError(f"--detector must be one of {', '.join(possible)} to be compared, got {others[0]!r}")
    words: dict[str, dict[str, str]] = {name: {} for name in names}
    for key, text in given.items():
        name, _, setting = key.partition(".")
        if name not in words:
            raise ValueError(f"--set must be NAME.SETTING=VALUE with NAME one of {', '.join(names)}, got {key}={text}")
        words[name][setting] = text
    return {name: typed(name, settings) for name, settings in words.items()}


def described(name: str) -> tuple[str, list[tuple[str, str, str]]]:
    """A heading, and what a detector can be asked for: name, default and what it is."""
    row = DETECTORS[name]
    source = f"; {row.source}" if row.source else ""
    rate = [] if row.rate is None else [("--rate", f"{row.rate:g}", "share of neurons that are chosen")]
    return f"{name}: from {row.evidence}{source}", rate + setting_rows(row.settings)


def setting_rows(settings: Mapping[str, Setting]) -> list[tuple[str, str, str]]:
    """Of every setting: name, default and what it is."""
    return [(key, "none" if s.default is None else str(s.default), about(s)) for key, s in settings.items()]


def about(setting: Setting) -> str:
    """What a setting is, can be, and where it is set."""
    can_be = ", ".join(setting.choices) if setting.choices else setting.limits
    return f"{setting.about}: {can_be}" + (" (set it with `record`)" if setting.recorded else "")
