"""Task sets of the field, read from where they lie, and the facts of the demo, as parallel items."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ..corpora import WITHOUT_SPACES
from .checks import check_list
from .numbers import last_number
from .tasks import Item


class Words(NamedTuple):
    """The few words of a language that prompts are made of."""

    question: str
    answer: str
    because: str = ""
    therefore: str = ""
    flores: str = ""
    """The language's code in FLORES-200, which Belebele uses."""


_WORDS = {
    "ar": Words("سؤال", "الإجابة", flores="arb_Arab"),
    "bn": Words("প্রশ্ন", "উত্তর", flores="ben_Beng"),
    "de": Words("Frage", "Antwort", flores="deu_Latn"),
    "en": Words("Question", "Answer", "because", "so", "eng_Latn"),
    "es": Words("Pregunta", "Respuesta", flores="spa_Latn"),
    "et": Words("Küsimus", "Vastus", "sest", "seega", "est_Latn"),
    "fr": Words("Question", "Réponse", flores="fra_Latn"),
    "hi": Words("प्रश्न", "उत्तर", flores="hin_Deva"),
    "id": Words("Pertanyaan", "Jawaban", "karena", "maka", "ind_Latn"),
    "it": Words("Domanda", "Risposta", "perché", "quindi", "ita_Latn"),
    "ja": Words("質問", "答え", flores="jpn_Jpan"),
    "pt": Words("Pergunta", "Resposta", flores="por_Latn"),
    "ru": Words("Вопрос", "Ответ", flores="rus_Cyrl"),
    "sw": Words("Swali", "Jibu", "kwa sababu", "kwa hiyo", "swh_Latn"),
    "te": Words("ప్రశ్న", "సమాధానం", flores="tel_Telu"),
    "th": Words("คำถาม", "คำตอบ", "เพราะ", "ดังนั้น", "tha_Thai"),
    "tr": Words("Soru", "Cevap", "çünkü", "bu yüzden", "tur_Latn"),
    "vi": Words("Câu hỏi", "Trả lời", "bởi vì", "vì vậy", "vie_Latn"),
    "zh": Words("问题", "答案", "因为", "所以", "zho_Hans"),
}

_TURKISH_LOWER = {"I": "ı", "İ": "i"}

_XNLI_PROMPT = (
    'Take the following as truth: {premise}\nThen the following statement: "{hypothesis}" is "true", "false", or '
    '"inconclusive"?'
)

XNLI_LANGUAGES = ["ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"]

_XNLI_CHOICES = (" true", " inconclusive", " false")


def load_xcopa(folder: str | Path, *, languages: Sequence[str] | None = None, split: str = "test") -> list[Item]:
    """Choice of plausible alternatives (Ponti et al. 2020) from files `<language>.<split>.jsonl`.

    The prompt is the premise and "because" or "so" in the language, the choices are the sentences after it. Whether
    cause or effect is asked is what most files of the folder say about the item: as published, the Thai files say
    "effect" throughout and the Turkish ones for their first hundred.

    Raises:
        ValueError: a language without a file or without the two words, or a damaged line, with file and line.
    """
    suffix = f".{split}.jsonl"
    files = {p.name.removesuffix(suffix): p for p in sorted(Path(folder).glob(f"*{suffix}"))}
    chosen = known(languages or tuple(files), files, f"{folder} has no <language>{suffix} file for")
    known(chosen, [k for k, words in _WORDS.items() if words.because], "there is no XCOPA prompt for")
    columns = ("premise", "choice1", "choice2", "question", "label", "idx")
    rows = {k: list(_json_rows(path, columns)) for k, path in files.items()}
    asked: dict[int, Counter[str]] = defaultdict(Counter)
    for row in (row for file in rows.values() for row in file):
        asked[row["idx"]][row["question"]] += 1
    return [_xcopa_item(row, k, asked[row["idx"]].most_common(1)[0][0]) for k in chosen for row in rows[k]]


def _xcopa_item(row: Mapping[str, Any], language: str, question: str) -> Item:
    gap = "" if language in WITHOUT_SPACES else " "
    word = _WORDS[language].because if question == "cause" else _WORDS[language].therefore
    choices = tuple(gap + _lower_first(row[name].strip(), language) for name in ("choice1", "choice2"))
    premise = row["premise"].strip().rstrip(".。")
    return Item(f"xcopa/{row['idx']}", language, "xcopa", f"{premise}{gap}{word}", choices, int(row["label"]))


def _lower_first(sentence: str, language: str) -> str:
    """The sentence as it goes on after another word; Turkish has two letters I."""
    special = _TURKISH_LOWER if language == "tr" else {}
    first = sentence[:1]
    return special.get(first, first.lower()) + sentence[1:]


def load_mgsm(folder: str | Path, *, languages: Sequence[str] | None = None) -> list[Item]:
    """Grade-school sums (Shi et al. 2022) from files `<language>.tsv`: question, tab, number.

    The answer is to be written: `written_accuracy(model, items, extract=last_number)`.

    Raises:
        ValueError: a language without a file, or a line that is not a question and a number, with file and line.
    """
    files = {p.stem: p for p in sorted(Path(folder).glob("*.tsv"))}
    items = []
    chosen = known(languages or tuple(files), files, f"{folder} has no <language>.tsv file for")
    for k in known(chosen, _WORDS, "there is no MGSM prompt for"):
        words = _WORDS[k]
        for number, line in lines(files[k]):
            question, _, answer = line.rpartition("\t")
            if not question.strip() or not last_number(answer):
                raise ValueError(
                    f"{files[k]}, line {number}: must be a question, a tab and a number; mend or remove the line"
                )
            prompt = f"{words.question}: {question.strip()}\n{words.answer}:"
            items.append(Item(f"mgsm/{number}", k, "mgsm", prompt, (), answer.strip()))
    return items


def load_mpararel(
    folder: str | Path,
    *,
    languages: Sequence[str] | None = None,
    relations: Sequence[str] | None = None,
    wordings: int = 1,
) -> tuple[list[Item], pd.DataFrame]:
    """Facts as cloze sentences (Fierro and Sogaard 2022) from `<language>/<relation>.{patterns,tuples}.jsonl`.

    A model that reads from left to right can only fill a gap at the end. So the first `wordings` patterns per relation
    and language that end with [Y] are asked, those checked by a person first, and the others are left out. The choices
    are all objects of the relation in the language, except for other right answers about the same subject. Languages
    have different facts, and some have no pattern for a relation: `in_every_language` keeps what can be compared.

    Returns:
        the items, with ids relation/subject/object/wording, and what was left out: one row per language and relation,
        with n_patterns, n_usable (patterns that end with [Y]), n_facts and n_items.

    Raises:
        ValueError: a language or relation without files, nothing usable at all, or a damaged line, with file and line.
    """
    folder = Path(folder)
    folders = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()} if folder.is_dir() else {}
    items, counts = [], []
    for k in known(languages or tuple(folders), folders, f"{folder} has no folder for"):
        files = {p.name.removesuffix(".patterns.jsonl"): p for p in sorted(folders[k].glob("*.patterns.jsonl"))}
        for relation in known(relations or tuple(files), files, f"{folders[k]} has no <relation>.patterns.jsonl for"):
            patterns = sorted(
                _json_rows(files[relation], ("pattern",)), key=lambda row: not row.get("checked-by-human")
            )
            usable = [row["pattern"].strip() for row in patterns if _is_usable(row["pattern"])]
            tuples = files[relation].with_name(f"{relation}.tuples.jsonl")
            facts = list(_json_rows(tuples, ("sub_uri", "obj_uri", "sub_label", "obj_label")))
            found = list(_fact_items(relation, k, usable[:wordings], facts))
            items += found
            counts.append((k, relation, len(patterns), len(usable), len(facts), len(found)))
    if not items:
        raise ValueError(f"{folder} has no pattern that ends with [Y] for these languages and relations; take others")
    return items, pd.DataFrame(counts, columns=["language", "relation", "n_patterns", "n_usable", "n_facts", "n_items"])


def _is_usable(pattern: str) -> bool:
    """Whether the pattern ends with the gap, and the subject stands before it."""
    return pattern.count("[X]") == pattern.count("[Y]") == 1 and pattern.strip().endswith("[Y]")


def _fact_items(
    relation: str, language: str, patterns: Sequence[str], facts: Sequence[Mapping[str, str]]
) -> Iterator[Item]:
    """One question per fact and pattern."""
    labels = sorted({fact["obj_label"] for fact in facts})
    right = defaultdict(set)
    for fact in facts:
        right[fact["sub_uri"]].add(fact["obj_label"])
    for number, pattern in enumerate(patterns):
        before = pattern.removesuffix("[Y]")
        prompt, gap = before.rstrip(), before[len(before.rstrip()) :]
        for fact in facts:
            answer = fact["obj_label"]
            choices = [label for label in labels if label == answer or label not in right[fact["sub_uri"]]]
            yield Item(
                id=f"{relation}/{fact['sub_uri']}/{fact['obj_uri']}/{number}",
                language=language,
                task=relation,
                prompt=prompt.replace("[X]", fact["sub_label"]),
                choices=tuple(gap + label for label in choices),
                answer=choices.index(answer),
            )


def load_xnli(
    source: str | Path = "facebook/xnli", *, languages: Sequence[str], split: str = "validation"
) -> list[Item]:
    """Does one sentence follow from another (Conneau et al. 2018), from Hugging Face or a local copy of the data set.

    The question around the two sentences is in English for every language, and nothing follows it (Wang et al., arXiv
    2406.09265); the answers true, inconclusive and false stand for the data's entailment, neutral and contradiction.

    Raises:
        ValueError: a language or split that the data set does not have, or another layout.
    """

    def item(row: Mapping[str, Any], language: str, number: int) -> Item:
        prompt = _XNLI_PROMPT.format(premise=row["premise"].strip(), hypothesis=row["hypothesis"].strip())
        return Item(f"xnli/{number}", language, "xnli", prompt, _XNLI_CHOICES, row["label"])

    configs = {k: k for k in known(languages, XNLI_LANGUAGES, "XNLI has no language")}
    return _dataset_items(str(source), configs, split, ("premise", "hypothesis", "label"), item)


def load_belebele(
    source: str | Path = "facebook/belebele", *, languages: Sequence[str], split: str = "test"
) -> list[Item]:
    """Reading with four answers (Bandarkar et al. 2024), from Hugging Face or a local copy of the data set.

    Answers are whole texts of different length: `choice_accuracy(model, items, normalise="bytes")`.

    Raises:
        ValueError: an unknown language, a language or split that the data set does not have, or another layout.
    """
    names = ("flores_passage", "question", "link", "question_number", "correct_answer_num")
    answers = tuple(f"mc_answer{i}" for i in range(1, 5))

    def item(row: Mapping[str, Any], language: str, number: int) -> Item:
        words, gap = _WORDS[language], "" if language in WITHOUT_SPACES else " "
        prompt = f"{row['flores_passage'].strip()}\n{words.question}: {row['question'].strip()}\n{words.answer}:"
        choices = tuple(gap + row[name].strip() for name in answers)
        name = f"belebele/{row['link']}/{row['question_number']}"
        return Item(name, language, "belebele", prompt, choices, int(row["correct_answer_num"]) - 1)

    configs = {k: _WORDS[k].flores for k in known(languages, _WORDS, "there is no Belebele prompt for")}
    return _dataset_items(str(source), configs, split, (*names, *answers), item)


def _dataset_items(
    source: str,
    configs: Mapping[str, str],
    split: str,
    columns: Sequence[str],
    item: Callable[[Mapping[str, Any], str, int], Item],
) -> list[Item]:
    """The items of a Hugging Face data set that has a configuration for every language."""
    from datasets import load_dataset

    items = []
    for language, config in configs.items():
        try:
            rows = load_dataset(source, config, split=split, streaming=True)
            for number, row in enumerate(rows):
                _check_columns(row, columns, f"{source} ({config}), row {number}")
                items.append(item(row, language, number))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"cannot read {source!r} ({config!r}, {split!r}): {reason}") from error
    return items


def known(asked: Sequence[str], there: Collection[str], message: str) -> Sequence[str]:
    """What was asked for, if it is something, and all of it is there."""
    check_list(asked, "names")
    missing = [name for name in asked if name not in there]
    if missing or not asked:
        raise ValueError(f"{message} {missing[0] if missing else 'any'!r}; choose from: {', '.join(there) or 'none'}")
    return asked


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty and their numbers from 1."""
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason}); convert the file") from error
        if line.strip():
            yield number, line


def _json_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file, one per line, each with these entries."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; put it beside the files it belongs to")
    for number, line in lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg}); mend or remove the line") from error
        _check_columns(row, columns, f"{path}, line {number}")
        yield row


def _check_columns(row: Any, columns: Sequence[str], place: str) -> None:
    missing = [name for name in columns if name not in row] if isinstance(row, dict) else columns
    if missing:
        raise ValueError(f"{place}: no {missing[0]!r}; give files of the published layout")


def load_facts(*, wordings: tuple[int, ...] = (0, 1)) -> list[Item]:
    """Capital, main language and continent of 40 countries as questions in ten languages.

    The choices are all answers that occur for the relation in the language. Wordings 0 and 1 are part of the model's
    training text, wording 2 is not.
    """
    lines = files("mi_multilingual").joinpath("demo", "facts.jsonl").read_text(encoding="utf-8").splitlines()
    facts = pd.DataFrame([json.loads(line) for line in lines])
    answers = facts.groupby(["relation", "lang"])["answer"].unique().map(sorted)
    items = []
    for fact in facts[facts.wording.isin(wordings)].itertuples():
        gap = "" if fact.lang in WITHOUT_SPACES else " "
        choices = answers[fact.relation, fact.lang]
        items.append(
            Item(
                id=f"{fact.country}/{fact.relation}/{fact.wording}",
                language=fact.lang,
                task=fact.relation,
                prompt=fact.prompt,
                choices=tuple(f"{gap}{choice}{fact.tail}" for choice in choices),
                answer=choices.index(fact.answer),
            )
        )
    return items
