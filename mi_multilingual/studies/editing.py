"""Facts changed in one language and asked for in others: how many follow, and which neurons carry the change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..detectors.table import Setting
from ..evaluation.edits import EditRecord, demonstrations, in_context, load_edits, load_fact_edits, load_mzsre
from ..evaluation.likelihood import Continuation, Forced, continuations, teacher_forced
from ..evaluation.readers import known
from ..evaluation.tasks import in_every_language, parallel_items
from ..evidence.sharing import TYPES, categories, parallel_activations
from ..models.hooked import HookedModel, site_of
from ..patching.conditions import CHOSEN, INTACT, NOT_RANDOM, RANDOM, check_seeds
from ..tokens import prompt_ids
from .editing_tables import MEASURES, editing_effects, editing_neuron_effects, editing_transfer
from .given import Given
from .rank_one import RankOne, edit, rank_one_edits, record_keys, subject_in, subject_keys

IN_CONTEXT, RANK_ONE = "in context", "rank one"
_COLUMNS = ("id", "edited", "asked", "editor", "condition", "seed", "known", "known_asked", *MEASURES, "gain", "fired")

_READERS = {"jsonl": load_edits, "mzsre": load_mzsre}

Updates = Mapping[tuple[str, str], RankOne]
"""Id and language of a record -> its update, as `rank_one_edits` gives them."""
_Same = Mapping[str, EditRecord]
"""One record by language."""


def editing_study(
    model: HookedModel,
    records: Sequence[EditRecord],
    updates: Updates | None = None,
    *,
    edited_in: Sequence[str] | None = None,
    shots: int = 0,
    seeds: Sequence[int] = (0, 1, 2),
    bos: str = "tokenizer",
    progress: bool = True,
) -> pd.DataFrame:
    """Facts changed in each of some languages and asked for in all; `editing_effects` sums them up.

    Every record is edited in context, and where `updates` are given in the weights too (`rank_one_edits`). The control
    is the edit of another record, which has another target in every language.

    Args:
        records: every id in the same languages.
        edited_in: the languages to say the new fact in; all by default.
        shots: demonstrations before an edit in context, of the records that follow it.
        seeds: of the choice of the other record, one draw each.
        bos: special tokens before every prompt (see `Reading`).

    Returns:
        one row per record, language edited in, language asked in, editor and condition: id, edited and editor ("" for
        the intact model), asked, condition, seed (-1 unless random), known (bool: the right answer was the likeliest
        before in the language edited in; true where the record has none), known_asked (the same in the language asked
        in), success (bool: with what stands before it given, every
        token of the target is the likeliest), generality (bool: the same behind the rephrase), locality (share of the
        other facts whose likeliest tokens are what they were), gain (of the target's log-likelihood, nats), fired (how
        much of the update the key of the prompt asked brings about, 1 for the prompt edited; NaN in context).

    Raises:
        ValueError: before anything runs: records that are not parallel, an unknown language, a prompt that is too long,
            a record without an update in a language or without another record to be held against, seeds that are
            missing, negative or repeat, or too many shots.

    Source: the third task of Wang et al. 2024, arXiv:2406.09265; measures as in Meng et al. 2022, arXiv:2202.05262.

    Example:
        >>> import mi_multilingual as mm
        >>> model, records = mm.load_model("demo"), mm.load_fact_edits(languages=["en", "fr"])[:4]
        >>> answers = mm.editing_study(model, records, edited_in=["en"], seeds=[0], progress=False)
        >>> answers.groupby(["condition", "asked"]).size().to_dict()
        {('chosen', 'en'): 2, ('chosen', 'fr'): 2, ('intact', 'en'): 2, ('intact', 'fr'): 2, ('random', 'en'): 2, \
('random', 'fr'): 2}
    """
    parallel = list(parallel_items(records).values())
    edited_in = _checked_languages(parallel, edited_in)
    _check(parallel, edited_in, updates, seeds)
    plain = [_questions(model, same, bos) for same in parallel]
    work = list(_edits(model, parallel, edited_in, updates, shots, seeds, bos))
    before = [_answers(model, asked) for asked in plain]
    right, keys = _known(model, records, bos), _subject_keys(model, parallel, updates, bos)
    rows = [row for same, said in zip(parallel, before, strict=True) for row in _intact_rows(same, said, right)]
    for one in tqdm(work, desc="asking", unit="edit", disable=not progress):
        same, said = parallel[one.record], before[one.record]
        with nullcontext() if one.update is None else edit(model, one.update):
            after = _answers(model, one.questions or plain[one.record])
        fired = [np.nan] * len(same) if one.update is None else one.update.fired(keys[one.record]).tolist()
        for (k, record), share in zip(same.items(), fired, strict=True):
            told = {"known": (record.id, one.labels["edited"]) in right, "known_asked": (record.id, k) in right}
            found = _measured(said[k], after[k])
            rows.append({**one.labels, "id": record.id, "asked": k, **told, **found, "fired": share})
    return pd.DataFrame(rows, columns=list(_COLUMNS))


@dataclass(frozen=True, eq=False)
class _Edit:
    """One edit, and of which record the questions are asked."""

    record: int
    labels: Mapping[str, Any]
    update: RankOne | None = None
    """None for an edit in context."""
    questions: _Questions | None = None
    """Those behind the words of an edit in context."""


def _edits(
    model: HookedModel,
    parallel: Sequence[_Same],
    edited_in: Sequence[str],
    updates: Updates | None,
    shots: int,
    seeds: Sequence[int],
    bos: str,
) -> Iterator[_Edit]:
    """Every record's edits and, as controls, those of other records in their place."""
    for number, same in enumerate(parallel):
        shown = demonstrations(parallel, number, shots)
        sources = [(CHOSEN, NOT_RANDOM, same), *((RANDOM, seed, _other(parallel, number, seed)) for seed in seeds)]
        for language in edited_in:
            for condition, seed, source in sources:
                new = source[language]
                labels = {"edited": language, "condition": condition, "seed": seed}
                fronts = {k: in_context(new, "", [(one[language], one[k]) for one in shown]) for k in same}
                asked = _questions(model, same, bos, fronts)
                yield _Edit(number, {**labels, "editor": IN_CONTEXT}, questions=asked)
                if updates:
                    yield _Edit(number, {**labels, "editor": RANK_ONE}, updates[new.id, language])


def _other(parallel: Sequence[_Same], number: int, seed: int) -> _Same:
    """Another record, drawn among those whose target is another one in every language."""
    mine = parallel[number]
    others = [same for same in parallel if all(same[k].target != record.target for k, record in mine.items())]
    if not others:
        raise ValueError(
            "every record must have another one with another target in every language, got none for "
            f"{next(iter(mine.values())).id!r}; give more records"
        )
    return others[np.random.default_rng([seed, number]).integers(len(others))]


def _checked_languages(parallel: Sequence[_Same], edited_in: Sequence[str] | None) -> Sequence[str]:
    if not parallel:
        raise ValueError("records must hold at least one, got none")
    languages = list(parallel[0])
    return known(languages if edited_in is None else edited_in, languages, "the records have no language")


def _check(parallel: Sequence[_Same], edited_in: Sequence[str], updates: Updates | None, seeds: Sequence[int]) -> None:
    check_seeds(seeds)
    if not seeds:
        raise ValueError("seeds must hold at least one number, got none; other edits are what these are held against")
    if updates is None:
        return
    wanted = [(next(iter(same.values())).id, k) for same in parallel for k in edited_in]
    if missing := [key for key in wanted if key not in updates]:
        raise ValueError(
            f"updates must hold every record in every language edited in, got none for {missing[0]}; make them with "
            "rank_one_edits(model, records, keys)"
        )
    if len({update.layer for update in updates.values()}) > 1:
        raise ValueError("updates must be of one layer, got several; make them with the same keys")


_Questions = Mapping[str, list[Continuation]]
"""By language asked in: the target, the target after the rephrase, the answers of other facts."""
_Answers = Mapping[str, list[tuple[bool, Forced]]]
"""What a model says to them, and whether all tokens are the likeliest."""


def _questions(model: HookedModel, same: _Same, bos: str, fronts: Mapping[str, str] | None = None) -> _Questions:
    """The questions of a record.

    Args:
        fronts: what stands before every prompt of a language.
    """
    found = {}
    for k, record in same.items():
        front = fronts[k] if fronts else ""
        pairs = [(record.prompt, record.target), (record.rephrase, record.target), *record.locality]
        found[k] = [continuations(model, front + prompt, [answer], bos=bos)[0] for prompt, answer in pairs]
    return found


def _answers(model: HookedModel, asked: _Questions) -> _Answers:
    """What the model says, all languages together."""
    flat = [c for questions in asked.values() for c in questions]
    said = iter(teacher_forced(model, flat))
    return {
        k: [(forced.likeliest == c.ids[c.first :], forced) for c, forced in zip(questions, said, strict=False)]
        for k, questions in asked.items()
    }


def _known(model: HookedModel, records: Sequence[EditRecord], bos: str) -> set[tuple[str, str]]:
    """Id and language of the records whose right answer is the likeliest, or not told."""
    told = [record for record in records if record.answer]
    found = [continuations(model, record.prompt, [record.answer], bos=bos)[0] for record in told]
    said = teacher_forced(model, found)
    wrong = {
        (record.id, record.language)
        for record, c, forced in zip(told, found, said, strict=True)
        if forced.likeliest != c.ids[c.first :]
    }
    return {(record.id, record.language) for record in records} - wrong


def _subject_keys(
    model: HookedModel, parallel: Sequence[_Same], updates: Updates | None, bos: str
) -> list[Float[Tensor, "language neuron"]]:
    """Of every record, the key of its prompt in each language; of none without updates."""
    if not updates:
        return []
    layer = next(iter(updates.values())).layer
    return [subject_keys(model, [subject_in(record) for record in same.values()], layer, bos=bos) for same in parallel]


def _measured(before: list[tuple[bool, Forced]], after: list[tuple[bool, Forced]]) -> dict[str, Any]:
    """The measures of one record in one language."""
    (success, target), (generality, _), *others = after
    kept = [one.likeliest == other.likeliest for (_, one), (_, other) in zip(before[2:], others, strict=True)]
    gain = target.log_likelihood - before[0][1].log_likelihood
    return {"success": success, "generality": generality, "locality": float(np.mean(kept)), "gain": gain}


def _intact_rows(same: _Same, said: _Answers, right: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    for k, record in same.items():
        labels = {"id": record.id, "edited": "", "asked": k, "editor": "", "condition": INTACT, "seed": NOT_RANDOM}
        told = (record.id, k) in right
        yield {**labels, "known": told, "known_asked": told, **_measured(said[k], said[k]), "fired": np.nan}


def editing_neurons(
    model: HookedModel, records: Sequence[EditRecord], updates: Updates, *, bos: str = "tokenizer"
) -> pd.DataFrame:
    """Which neurons carry an update of rank one: those that languages share for the prompt, or others.

    Neurons of the edited layer are typed by the languages they are active in (`categories`), at the last token of the
    prompt, as Wang et al. do, and where the subject ends, where the edit reads them.

    Args:
        records: every id in the same languages, at least two.

    Returns:
        one row per record, language edited in, token ("last" or "subject") and type: id, edited, token, type, share (of
        the layer's neurons), carried (share of the update's squared norm), beyond (carried less share).

    Raises:
        ValueError: records that are not parallel, in one language only, or without an update in any language.
    """
    parallel = parallel_items(records)
    rows = []
    for same in parallel.values():
        if len(same) < 2:
            raise ValueError(f"records must be in at least two languages to share neurons, got {list(same)}")
        mine = {k: updates[record.id, k] for k, record in same.items() if (record.id, k) in updates}
        if not mine:
            raise ValueError(f"updates must hold every record, got none for {next(iter(same.values())).id!r}")
        for token, kind in _types(model, same, next(iter(mine.values())).layer, bos).items():
            for k, update in mine.items():
                labels = {"id": same[k].id, "edited": k, "token": token}
                rows += [{**labels, **row} for row in _carried(kind, update.direction)]
    return pd.DataFrame(rows)


def _types(model: HookedModel, same: _Same, layer: int, bos: str) -> dict[str, Int[Tensor, " neuron"]]:
    """The type of each neuron of the layer for one record, at the last token and at the subject's."""
    ids = prompt_ids(model.tokenizer, [record.prompt for record in same.values()], bos)
    last = parallel_activations(model, site_of(model, "post"), [[row] for row in ids], "last")[:, :, layer]
    subject = subject_keys(model, [subject_in(record) for record in same.values()], layer, bos=bos)
    values = {"last": last[:, :, None], "subject": subject[:, None, None]}
    return {token: categories(value > 0)[0, 0] for token, value in values.items()}


def _carried(kind: Int[Tensor, " neuron"], direction: Float[Tensor, " neuron"]) -> Iterator[dict[str, Any]]:
    weight = direction.square() / direction.square().sum()
    for i, name in enumerate(TYPES):
        share, carried = float((kind == i).double().mean()), float(weight[kind == i].sum())
        yield {"type": name, "share": share, "carried": carried, "beyond": carried - share}


TABLES = ("editing", "editing_effects", "editing_transfer", "editing_neurons", "editing_neuron_effects")
SETTINGS = {
    "records": Setting("demo", "whose facts to change: the demo's, or those of a file", choices=("demo", *_READERS)),
    "file": Setting("", "that file"),
    "n_records": Setting(10, "facts to change, those known in most languages", 2),
    "n_edited": Setting(2, "languages to edit in, the first ones of the text", 1),
    "depth": Setting(0.2, "of the edited layer: 0 for the first, 1 for the last", 0.0, 1.0),
    "n_documents": Setting(40, "documents of each language that keys are recorded on", 1),
    "shots": Setting(0, "demonstrations before an edit in context", 0),
}
"""Of `run`. Of 4 layers the default depth means the first, of 32 the seventh."""


def run(given: Given) -> dict[str, pd.DataFrame]:
    """Facts changed in the first languages and asked for in all, the two editors beside each other."""
    model, settings, bos = given.model, given.settings, given.reading.bos
    records = _best_known(model, _records(given), settings["n_records"], bos)
    languages = list(dict.fromkeys(record.language for record in records))
    texts = {k: tuple(islice(given.identify.documents[k], settings["n_documents"])) for k in languages}
    layer = min(int(settings["depth"] * model.cfg.n_layers), model.cfg.n_layers - 1)
    shown: dict[str, Any] = {"bos": bos, "progress": given.progress}
    keys = record_keys(
        model, Corpus(texts, given.identify.source), layer=layer, reading=given.reading, progress=given.progress
    )
    edited = languages[: settings["n_edited"]]
    updates = rank_one_edits(model, records, keys, edited_in=edited, **shown)
    answers = editing_study(
        model, records, updates, edited_in=edited, shots=settings["shots"], seeds=given.seeds, **shown
    )
    neurons = editing_neurons(model, records, updates, bos=bos)
    tables = (answers, editing_effects(answers), editing_transfer(answers), neurons, editing_neuron_effects(neurons))
    return dict(zip(TABLES, tables, strict=True))


def _records(given: Given) -> list[EditRecord]:
    """The records asked for, in the languages that the text has too."""
    name, file = given.settings["records"], given.settings["file"]
    if (name == "demo") != (not file):
        raise ValueError(f"file must be given where records are not the demo's, got {file!r} with records={name!r}")
    found = load_fact_edits() if name == "demo" else _READERS[name](file)
    kept = [record for record in found if record.language in given.identify.languages]
    kept.sort(key=lambda record: given.identify.languages.index(record.language))
    if len({record.language for record in kept}) < 2:
        raise ValueError(
            f"records must be in at least two of the text's languages, {', '.join(given.identify.languages)}; give "
            "other text or records"
        )
    return in_every_language(kept)


def _best_known(model: HookedModel, records: Sequence[EditRecord], n: int, bos: str) -> list[EditRecord]:
    """The records of the n ids whose right answer the model gives in most languages."""
    right = Counter(name for name, _ in _known(model, records, bos))
    ids = sorted(dict.fromkeys(record.id for record in records), key=lambda name: -right[name])[:n]
    return [record for record in records if record.id in set(ids)]
