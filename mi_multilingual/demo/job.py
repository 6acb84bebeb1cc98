"""The main job on the embedded model and text: its parameters, and the steps that only this text allows."""

from pathlib import Path

import pandas as pd

from ..analysis.attribution import attribution
from ..analysis.significance import half_agreement, lape_membership, lape_of_texts, permutation_test
from ..corpora import Corpus, load_corpus
from ..evaluation.intervals import wilson_interval
from ..evaluation.readers import load_facts
from ..evaluation.tasks import Item, choice_accuracy
from ..evidence.sharing import sharing_categories
from ..evidence.texts import record_texts
from ..models.hooked import HookedModel
from ..models.loading import load_model
from ..report import files
from ..storage import save
from ..studies.deactivation import deactivation_effects, deactivation_study
from ..tokens import DOCUMENTS
from .steps import Compared, Job, Running, Steered, Text, run_job, study_step

LAPE = {"rate": 0.05, "filter_rate": 0.985}
"""How LAPE is asked here. 1 % of all neurons, the paper's rate, would be six per language in so small a model; where
only one neuron in 25 is active at a token, the paper's 0.95 lets neurons pass that hardly ever fire."""
READING = DOCUMENTS
"""How text is read here: the corpus is single sentences."""
CONTINUED = {"max_new_tokens": 30, "min_new_tokens": 15, "repetition_penalty": 1.1}
"""How prompts are continued: greedily, with the penalty of LAPE's open-ended generation, and at some length."""
_PERMUTATIONS, _RESAMPLES = 200, 100
# Numbers per language, such that the demo takes less than two minutes: sentences the matrix is measured on; for the
# comparison of detectors, sentences they see, sentences they are measured on, and neurons they give; sentences among
# which those are found at which a neuron is highest.
_EVALUATED = 32
_RANKED_ON, _COMPARED_ON, _COMPARED_NEURONS = 30, 3, 20
_EXAMPLES_FROM = 80
_FACTS_FROM = 4  # every fourth country is asked about
_TYPES_AMONG = ("en", "de", "es", "fr")
"""Languages between which neurons are shared: of ten languages hardly any neuron is active in all."""
_CROSSED = ("en", "fr", "ru", "zh")
_STEERED = Steered(
    sources=("en", "ja", "ru"),
    chosen_by=("en", "ja"),  # two are enough to choose a strength by
    rate=0.1,
    strengths=(1.0, 2.0, 4.0),
    asked={"source_off": True, "max_new_tokens": 10, "min_new_tokens": 8, "repetition_penalty": 1.1},
)
SHORT_STUDIES = {
    "lape_tables": None,
    "representations": None,
    "layer_languages": None,
    "regions": None,
    "editing": ("en", "fr", "ja"),
    "alignment_tuning": None,
    "tuning": None,
}
"""The whole studies that take a few seconds here, and the languages they are about, where not all."""
_HELD_OUT_WORDING = 2
"""The wording of every relation that is not in the training text."""


def run_demo(out: Path | str, *, progress: bool = True) -> Path:
    """The main job on the embedded model and corpus: language neurons, their ablation, and the page that shows it.

    Beside them: whether the neurons are more than chance, which neurons the languages share, which carry an answer, and
    how the detectors compare. Writes the files that `mi_multilingual.report.files` names into `out`, and returns the
    path of the page.
    """
    steps = {
        "significance": _write_significance,
        "sharing": _write_sharing,
        "facts": _write_facts,
        "deactivation": _write_deactivation,
        **{name: study_step(name, languages) for name, languages in SHORT_STUDIES.items()},
    }
    return run_job(demo_job(load_model("demo")), Path(out), steps, progress=progress)


def demo_job(model: HookedModel) -> Job:
    """What the demo asks, of a model with its tokenizer."""
    identify = load_corpus("demo", split="identify")
    evaluate = load_corpus("demo", split="evaluate", max_documents=_EVALUATED)
    seen, few, shown = (
        Text(corpus.first(n), READING)
        for corpus, n in ((identify, _RANKED_ON), (evaluate, _COMPARED_ON), (identify, _EXAMPLES_FROM))
    )
    return Job(
        model=model,
        identify=Text(identify, READING),
        evaluate=Text(evaluate, READING),
        examples=shown,
        lape=LAPE,
        compared=Compared(seen, few, n=_COMPARED_NEURONS),
        steered=_STEERED,
        continued=CONTINUED,
    )


def _write_significance(running: Running) -> None:
    """Chance, corrected p-values, agreement of halves and frequency of membership of the LAPE neurons."""
    model, corpus, progress = running.job.model, running.job.identify.corpus, running.progress
    texts = record_texts(model, corpus, reductions=["active"], reading=READING, progress=progress)["active"]
    table, _ = permutation_test(texts, permutations=_PERMUTATIONS, progress=progress, **LAPE)
    halves = half_agreement(texts, lambda half: lape_of_texts(half, **LAPE), progress=progress)
    table.merge(halves, on="language").to_parquet(running.out / files.SIGNIFICANCE)
    save(lape_membership(texts, resamples=_RESAMPLES, progress=progress, **LAPE), running.out / files.MEMBERSHIP)


def _write_sharing(running: Running) -> None:
    """Sharing categories on parallel sentences, and what each type adds to the answers of the fact questions."""
    model, out, progress = running.job.model, running.out, running.progress
    sharing = sharing_categories(model, running.job.evaluate.corpus, reading=READING, progress=progress)
    shares = sharing.layer_shares().merge(sharing.stability(), on=["task", "threshold", "layer", "type"])
    shares.to_parquet(out / files.SHARING)
    sharing.overlap().to_parquet(out / files.OVERLAP)
    prompts, answers = fact_prompts()
    attribution(model, prompts, answers, progress=progress).to_parquet(out / files.ATTRIBUTION)


def _write_facts(running: Running) -> None:
    """Accuracy of ten countries' facts."""
    answers = choice_accuracy(running.job.model, _asked_facts(), progress=running.progress)
    fact_table(answers).to_parquet(running.out / files.FACTS)


def _write_deactivation(running: Running) -> None:
    """Answers without the neurons that languages share for the question, and without another language's neurons."""
    model, out, progress = running.job.model, running.out, running.progress
    facts = [item for item in _asked_facts() if item.task == "continent"]
    near, far = ([item for item in facts if item.language in chosen] for chosen in (_TYPES_AMONG, _CROSSED))
    by_type = deactivation_study(model, near, seeds=(0,), progress=progress)
    deactivation_effects(by_type).to_parquet(out / files.DEACTIVATION)
    crossed = deactivation_study(model, far, running.neurons.take(_CROSSED), seeds=(0,), progress=progress)
    deactivation_effects(crossed).to_parquet(out / files.CROSS_FACTS)


def _asked_facts() -> list[Item]:
    """The questions of the first wording about every fourth country."""
    facts = load_facts(wordings=(0,))
    asked = sorted({_fact_country(item) for item in facts})[::_FACTS_FROM]
    return [item for item in facts if _fact_country(item) in asked]


def fact_prompts() -> tuple[Corpus, Corpus]:
    """The questions of the first wording about every fourth country and their answers, as parallel corpora."""
    by_language: dict[str, dict[str, Item]] = {}
    for item in _asked_facts():
        by_language.setdefault(item.language, {})[item.id] = item
    ids = sorted(next(iter(by_language.values())))
    prompts = {k: tuple(items[i].prompt for i in ids) for k, items in by_language.items()}
    answers = {k: tuple(items[i].choices[items[i].answer].strip() for i in ids) for k, items in by_language.items()}
    return Corpus(prompts, "fact prompts"), Corpus(answers, "fact answers")


def _fact_country(item: Item) -> str:
    return item.id.split("/")[0]


def fact_table(answers: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by language, relation and wording with a 95 % Wilson interval over the countries asked."""
    wording = answers.id.str.rsplit("/", n=1).str[1].astype(int)
    table = answers.assign(wording=wording, relation=answers.task)
    table = (
        table.groupby(["language", "relation", "wording"], sort=False)["correct"]
        .agg(accuracy="mean", n="size")
        .reset_index()
    )
    low, high = wilson_interval(table.accuracy.to_numpy(float), table.n.to_numpy(float))
    return table.assign(low=low, high=high)
