"""Facts to be changed in a model: records, the files they are read from, the demo's, and the words that change them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..corpora import WITHOUT_SPACES
from .readers import known, lines
from .tasks import Item, parallel_items

_FIELDS = ("id", "language", "subject", "prompt", "rephrase", "target", "locality")
_MZSRE = ("subject", "src", "rephrase", "alt", "loc", "loc_ans")


@dataclass(frozen=True)
class EditRecord:
    """A fact to be changed, in one language; the same change in another language has the same id.

    White space between a prompt and what follows it belongs to what follows.
    """

    id: str
    language: str
    subject: str
    """What the fact is about, as it stands in the prompt."""
    prompt: str
    rephrase: str
    """The prompt in other words."""
    target: str
    """What is to follow the prompt after the edit."""
    locality: tuple[tuple[str, str], ...]
    """Other facts, which the edit must leave alone: prompts and answers."""
    answer: str = ""
    """What follows the prompt in truth; "" where that is not known."""

    def __post_init__(self) -> None:
        said = f"of record {self.id!r} ({self.language})"
        for name in ("subject", "prompt", "rephrase", "target"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} {said} must have some text, got {getattr(self, name)!r}")
        if not self.locality or not all(part.strip() for pair in self.locality for part in pair):
            raise ValueError(f"locality {said} must be prompts with answers, at least one, got {self.locality}")


def load_edits(file: str | Path) -> list[EditRecord]:
    """Records from a JSONL file: a line is an object with the fields of `EditRecord`, `answer` where it is known.

    `locality` is a list of pairs [prompt, answer]. The target, the answers and `answer` follow their prompts as they
    stand, so they begin with the white space that separates them.

    Raises:
        ValueError: no record, or a damaged line, with file and line.
    """
    records = []
    for place, row in _objects(Path(file)):
        _check_fields(row, _FIELDS, place)
        pairs = row["locality"]
        if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
            raise ValueError(f"{place}: locality must be a list of pairs [prompt, answer], got {pairs!r}; mend it")
        plain = {name: str(row[name]) for name in _FIELDS if name != "locality"}
        locality = tuple((str(prompt), str(answer)) for prompt, answer in pairs)
        records.append(EditRecord(**plain, locality=locality, answer=str(row.get("answer", ""))))
    return records


def load_mzsre(file: str | Path, *, languages: Sequence[str] | None = None) -> list[EditRecord]:
    """Records of the layout of MzsRE: objects {language: {subject, src, rephrase, alt, loc, loc_ans}}, one a line or in
    one list.

    The layout does not say what is true of the subject before.

    Args:
        languages: those to read, all of the first object by default.

    Raises:
        ValueError: no record, an object that lacks a language or a field, with file and place.
    """
    records, chosen = [], list(languages or ())
    for number, (place, row) in enumerate(_objects(Path(file))):
        chosen = chosen or list(row)
        for language in known(chosen, row, f"{place} has no language"):
            _check_fields(row[language], _MZSRE, f"{place}, {language!r}")
            records.append(_mzsre_record(f"mzsre/{number}", language, row[language]))
    return records


def _mzsre_record(name: str, language: str, row: Mapping[str, Any]) -> EditRecord:
    gap = "" if language in WITHOUT_SPACES else " "
    text = {key: str(row[key]).strip() for key in _MZSRE}
    locality = ((text["loc"], gap + text["loc_ans"]),)
    return EditRecord(name, language, text["subject"], text["src"], text["rephrase"], gap + text["alt"], locality)


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, one a line or in one list, each with its place."""
    if not path.is_file():
        raise ValueError(f"file must be one that is there, got {path}")
    n = 0
    for number, line in lines(path) if not _is_list(path) else [(0, path.read_text(encoding="utf-8"))]:
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number or error.lineno}: not JSON ({error.msg}); mend it") from error
        for i, row in enumerate(content if isinstance(content, list) else [content]):
            place = f"{path}, line {number}" if number else f"{path}, object {i}"
            if not isinstance(row, dict) or not row:
                raise ValueError(f"{place}: must be an object with fields, got {row!r:.40}; mend or remove it")
            n += 1
            yield place, row
    if not n:
        raise ValueError(f"file must have at least one record, got none in {path}")


def _is_list(path: Path) -> bool:
    return path.read_bytes().lstrip()[:1] == b"["


def _check_fields(row: Any, fields: Sequence[str], place: str) -> None:
    missing = [name for name in fields if name not in row] if isinstance(row, dict) else fields
    if missing:
        raise ValueError(f"{place}: no {missing[0]!r}; give a file of the layout that the reader describes")


def load_fact_edits(
    *, relation: str = "capital", languages: Sequence[str] | None = None, seed: int = 0
) -> list[EditRecord]:
    """The demo's 40 countries as records: each gets another country's answer, the same in every language.

    The prompt is wording 0, the rephrase wording 1; locality is the same relation of two further countries.

    Args:
        seed: of the draw of the other countries.

    Raises:
        ValueError: an unknown relation or language.
    """
    path = files("mi_multilingual").joinpath("demo", "facts.jsonl")
    facts = pd.DataFrame([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    known([relation], facts.relation.unique().tolist(), "the demo has no relation")
    part = facts[facts.relation == relation].set_index(["country", "lang", "wording"])
    every = part.index.unique("lang").tolist()
    chosen = known(languages or every, every, "the demo has no facts in")
    answers = part.xs(0, level="wording").answer.unstack("country")
    others = _other_countries(answers, seed)
    return [_fact_record(part, relation, country, k, others[country]) for country in others for k in chosen]


def _other_countries(answers: pd.DataFrame, seed: int) -> dict[str, list[str]]:
    """Of every country, one whose answer it gets, other than its own in all languages, and two further ones."""
    random, found = np.random.default_rng(seed), {}
    for country in answers:
        differs = (answers.ne(answers[country], axis=0)).all()
        target = random.choice(answers.columns[differs])
        rest = [other for other in answers if other not in (country, target)]
        found[country] = [target, *random.choice(rest, 2, replace=False)]
    return found


def _fact_record(part: pd.DataFrame, relation: str, country: str, language: str, others: Sequence[str]) -> EditRecord:
    gap = "" if language in WITHOUT_SPACES else " "
    own, target, *local = (part.loc[name, language, 0] for name in (country, *others))
    return EditRecord(
        id=f"{country}/{relation}",
        language=language,
        subject=own.subject,
        prompt=own.prompt,
        rephrase=part.loc[country, language, 1].prompt,
        target=gap + target.answer,
        locality=tuple((fact.prompt, gap + fact.answer) for fact in local),
        answer=gap + own.answer,
    )


def in_context(edit: EditRecord, prompt: str, shown: Sequence[tuple[EditRecord, EditRecord]] = ()) -> str:
    """The prompt behind words that change a fact.

    Args:
        edit: what to change, in the language to say it in.
        shown: other records as demonstrations, each in the language of the edit and in that of the prompt; without
            any, the new fact alone stands before the prompt (ours).

    Source: Wang et al. 2024, arXiv:2406.09265; demonstrations as in Zheng et al. 2023, arXiv:2305.12740.

    Example:
        >>> import mi_multilingual as mm
        >>> one = mm.load_fact_edits(languages=["en"])[0]
        >>> print(mm.in_context(one, one.rephrase))
        New Fact: The capital of Angola is Mogadishu
        Prompt: If you travel to the capital of Angola, you arrive in
    """
    pairs = [(new.prompt + new.target, f"{asked.prompt}{asked.target}\n\n") for new, asked in shown]
    return "".join(f"New Fact: {new}\nPrompt: {asked}" for new, asked in [*pairs, (edit.prompt + edit.target, prompt)])


def editing_prompts(records: Sequence[EditRecord], *, pivot: str = "en", shots: int = 0) -> list[Item]:
    """Prompts that change a fact in context, as parallel items of two tasks: pivot to all, and all to pivot.

    Items of the first task say the new fact in the pivot and ask in their own language; those of the second say it in
    their own language and ask in the pivot. The answer is the new one.

    Args:
        records: every id in the same languages.
        pivot: one of the languages.
        shots: demonstrations before each, of the records that follow it.

    Raises:
        ValueError: records that are not parallel, a pivot that they do not have, or more shots than further records.

    Source: the third task of Wang et al. 2024, arXiv:2406.09265.
    """
    parallel = parallel_items(records)
    known([pivot], next(iter(parallel.values()), {}), "the records have no language")
    items = []
    for i, same in enumerate(parallel.values()):
        shown = demonstrations(list(parallel.values()), i, shots)
        for language, record in same.items():
            for task, new, asked in ((f"{pivot} to all", pivot, language), (f"all to {pivot}", language, pivot)):
                prompt = in_context(same[new], same[asked].prompt, [(one[new], one[asked]) for one in shown])
                name = f"{record.id}/{task}"
                items.append(Item(name, language, f"editing {task}", prompt, (), same[asked].target.strip()))
    return items


def demonstrations(
    parallel: Sequence[Mapping[str, EditRecord]], number: int, shots: int
) -> list[Mapping[str, EditRecord]]:
    """The records that follow one, from the first again after the last.

    Raises:
        ValueError: fewer further records than shots, or a negative number of them.
    """
    if not 0 <= shots < len(parallel):
        raise ValueError(f"shots must be from 0 to {len(parallel) - 1}, one per further record, got {shots}")
    return [parallel[(number + i) % len(parallel)] for i in range(1, shots + 1)]
