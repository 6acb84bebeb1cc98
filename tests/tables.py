"""Whole tables of studies for languages of any name, without a model."""

from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import torch

from mi_multilingual import (
    TYPES,
    NeuronSet,
    Representations,
    ablation_comparison,
    ablation_matrix,
    curve_table,
    dominance,
    layer_means,
    middle_and_ends,
    representation_effects,
    u_shape,
)
from mi_multilingual.analysis.distance import pairs_of, share_against_distance
from mi_multilingual.evidence.routing import Routing
from mi_multilingual.studies.alignment_tuning import alignment_effects
from mi_multilingual.studies.deactivation import deactivation_effects
from mi_multilingual.studies.editing_tables import editing_effects, editing_neuron_effects, editing_transfer
from mi_multilingual.studies.experts import (
    expert_table,
    expert_types,
    family_table,
    pruning_curve,
    similarity_table,
    tuned_table,
)
from mi_multilingual.studies.open_generation import open_generation_table
from mi_multilingual.studies.sharing import contribution_table, means_over_inputs, type_shares
from mi_multilingual.studies.translation import pairwise_overlap, translation_scores
from mi_multilingual.studies.tuning import tuning_effects, tuning_summary
from mi_multilingual.tokens import DOCUMENTS


def of_representations(languages):
    """Name -> table of the study `representations`: four layers of eight sentences, each language's neurons off."""
    random = np.random.default_rng(0)
    conditions = [("intact", "", -1), *(("chosen", k, -1) for k in languages), *(("random", k, 0) for k in languages)]
    cells = [(*c, *rest) for c, *rest in product(conditions, range(4), languages, range(8))]
    outputs = pd.DataFrame(cells, columns=["condition", "group", "seed", "layer", "language", "sentence"])
    for measure in ("similarity", "floor", "retrieval", "mexa", "cka"):
        outputs[measure] = random.random(len(outputs))
    vectors = torch.randn(4, len(languages), 8, 5, generator=torch.Generator().manual_seed(0))
    found = Representations(vectors, tuple(languages), "mean", "m", "f", "c", DOCUMENTS)
    neurons = NeuronSet.of({k: [(0, i), (2, i)] for i, k in enumerate(languages)}, shape=(3, 9))
    return {
        "representation_layers": layer_means(outputs),
        "representation_shape": middle_and_ends(outputs),
        "representation_effects": representation_effects(outputs.assign(n_neurons=2)),
        "dominance": pd.concat([dominance(found, shifted=s).assign(shifted=s) for s in (False, True)]),
        "neuron_layers": neurons.counts(),
        "u_shape": u_shape(neurons),
    }


def of_methods(languages):
    """Name -> table of the study `lape_tables`: two methods and two sizes on six rows of text."""
    random = np.random.default_rng(0)
    conditions = [("", "intact", "", -1)]
    for k in languages:
        conditions += [("lape", "chosen", k, -1), ("lape", "random", k, 0), ("uniform random", "random", k, 0)]
        conditions += [("lap", "chosen", k, -1), ("lap", "random", k, 0)]
    cells = [(*c, *rest) for c, *rest in product(conditions, languages, range(6))]
    outputs = pd.DataFrame(cells, columns=["method", "condition", "group", "seed", "evaluated", "row"])
    outputs = outputs.assign(n_neurons=3, n_tokens=10, nll=30 + random.random(len(outputs)))
    lape = outputs.method.isin(["", "lape"]) & ((outputs.group == outputs.evaluated) | (outputs.group == ""))
    curve = pd.concat([outputs[lape & ((outputs.method != "") | (n == 4))].assign(n=n) for n in (4, 8)])
    return {
        "ablation_matrix": ablation_matrix(outputs),
        "ablation_comparison": ablation_comparison(outputs),
        "ablation_curve": curve_table(curve),
    }


def of_sharing(languages):
    """Name -> table of the study `sharing`: two tasks of four questions in two layers."""
    random = np.random.default_rng(0)
    by_type = {"task": ("a", "b"), "id": range(4), "threshold": (0.0, 0.5), "layer": range(2), "type": TYPES}
    of_language = {name: by_type[name] for name in ("task", "id", "threshold")} | {"language": languages}
    contributions = {"task": ("a", "b"), "id": range(4), "language": languages, "layer": range(2), "type": TYPES}
    measures = ("top_share", "contribution_mean")
    outputs = {
        "types": _numbers(by_type, random, "share", "chance"),
        "active": _numbers({**of_language, "layer": range(2)}, random, "share"),
        "repeated": _numbers({k: v for k, v in by_type.items() if k != "id"}, random, "repeated"),
        "contributions": _numbers(contributions, random, *measures).assign(n_neurons=7),
    }
    overlap = pd.DataFrame([[1.0, 0.5, 0.2], [0.5, 1.0, 0.3], [0.2, 0.3, 1.0]], _RELATED, _RELATED)
    names = dict(zip(_RELATED, languages, strict=True))
    return {
        "sharing_types": type_shares(outputs),
        "sharing_active": means_over_inputs(outputs["active"], ["threshold", "language", "layer"], "share"),
        "sharing_contributions": contribution_table(outputs),
        "sharing_deactivation": _without_types(languages, random),
        "sharing_written": _without_types(languages, random).query("measure == 'accuracy'"),
        "sharing_pairs": pairs_of(overlap).replace({"language": names, "other": names}),
        "sharing_distance": share_against_distance(overlap),
    }


_RELATED = ("en", "de", "ja")
"""Languages whose families are known, as many as there are names to give them."""


def _numbers(axes, random, *names):
    """A row of random numbers for each place."""
    table = pd.DataFrame(product(*axes.values()), columns=list(axes))
    return table.assign(**{name: random.random(len(table)) for name in names})


def _conditions(groups):
    """(condition, group, seed) of a study with one random control per group."""
    return [("intact", "", -1), *((c, k, s) for k in groups for c, s in (("chosen", -1), ("random", 0)))]


def _under(groups, axes, random, *names):
    """A row of random numbers for each place under each condition."""
    table = _numbers({"under": _conditions(groups), **axes}, random, *names)
    labels = pd.DataFrame(table.pop("under").tolist(), columns=["condition", "group", "seed"])
    return pd.concat([labels, table], axis=1)


def _without_types(languages, random):
    """`deactivation_effects` of two tasks."""
    answers = _under(TYPES, {"id": range(4), "language": languages}, random, "margin").assign(n_neurons=5)
    table = deactivation_effects(answers.assign(correct=answers.margin > 0.5))
    return pd.concat([table.assign(task=task) for task in ("a", "b")])


def of_experts(languages):
    """Name -> table of the study `experts`: two layers of four experts, before and after tuning."""
    random = np.random.default_rng(0)
    base, tuned = (_routing(languages, seed) for seed in (0, 1))
    rows = {"layers": ("uniform", "layer-wise"), "rate": (0.25, 0.5), "row": range(4)}
    outputs = _under(languages, rows, random, "nll").query("condition != 'intact'").assign(n_tokens=10, n_neurons=4)
    return {
        "experts": expert_table(base),
        "expert_types": expert_types(base),
        "expert_similarity": similarity_table({"base": base, "tuned": tuned}),
        "expert_families": family_table({"base": _routing(_RELATED, 0)}),
        "expert_tuned": tuned_table(base, tuned),
        "pruning": pruning_curve(outputs.assign(intact=0.5)),
    }


def _routing(languages, seed):
    used = torch.randint(1, 50, (2, 4, 3), generator=torch.Generator().manual_seed(seed))
    experts, n_tokens = torch.arange(8).repeat(2, 1) // 2, torch.full((3,), 50)
    return Routing(used, n_tokens, experts, 2, tuple(languages), "gate", "m", "f", "c", DOCUMENTS)


def of_editing(languages):
    """Name -> table of the study `editing`: four facts, edited in context and by an update of rank one."""
    random = np.random.default_rng(0)
    axes = {"editor": ("in context", "rank one"), "edited": languages, "asked": languages, "id": range(4)}
    answers = _under(("",), axes, random, "success", "generality", "locality").assign(known=True)
    measures = ["success", "generality", "locality"]
    answers[measures] = answers[measures] > 0.5
    places = {"id": range(4), "edited": languages, "token": ("last", "subject"), "type": TYPES}
    neurons = _numbers(places, random, "share", "carried")
    return {
        "editing_effects": editing_effects(answers),
        "editing_transfer": editing_transfer(answers),
        "editing_neuron_effects": editing_neuron_effects(neurons.assign(beyond=neurons.carried - neurons.share)),
    }


def of_tuning(languages):
    """Name -> table of the studies `tuning` and `alignment_tuning`: four rows of text, four questions."""
    random = np.random.default_rng(0)
    axes = {"arm": ("chosen", "random", "full"), "group": languages, "evaluated": languages, "row": range(4)}
    rows = _numbers(axes, random, "before", "after").assign(n_neurons=3, n_trained=9, learning_rate=0.1, n_tokens=5)
    axes = {"arm": ("intact", "aligned", "mixed", "alone"), "id": range(4), "language": languages}
    answers = _numbers(axes, random, "all_shared", "margin")
    return {
        "tuning": tuning_effects(rows),
        "tuning_summary": tuning_summary(rows),
        "alignment_tuning": alignment_effects(answers.assign(correct=answers.margin > 0.5)),
    }


def of_open_answers(languages):
    """Name -> table of the study `open_generation`: two questions per language, answered in it as the model is."""
    random = np.random.default_rng(0)
    cells = [("", "", "", "intact", k, k) for k in languages]
    cells += [("off", "", drawn, "random", k, k) for drawn in ("uniform", "layers") for k in languages]
    for condition, drawn in (("chosen", ""), ("random", "layers")):
        for group, other in product(languages, languages):
            cells.append(("off", group, drawn, condition, other, other))
            change = "raised" if group == other else "switched"
            cells.append((change, group, drawn, condition, other, group))
    columns = ["change", "group", "drawn", "condition", "source", "target"]
    answers = pd.DataFrame([cell for cell in cells for _ in range(2)], columns=columns)
    first, second, _ = languages
    found = np.where(answers.condition == "chosen", second, answers.source)
    found = np.where(answers.index % 7 == 0, "unknown", np.where(answers.index % 5 == 0, first, found))
    numbers = {name: random.random(len(answers)) for name in ("switched", "distinct_2", "nll")}
    texts = {"prompt": "Why?", "continuation": "Because."}
    answers = answers.assign(
        found=found, seed=0, n_neurons=3, n_tokens=4, rating=3.0, raising="", strength=0.0, **texts, **numbers
    )
    return {"open_answers": answers, "open_generation": open_generation_table(answers)}


def of_translations(languages):
    """Name -> table of the study `translation`: three sentences, two texts from nothing, three random neurons."""
    said = {"intact": "The dog sleeps.", "chosen": "Le chien dort.", "random": "Le dog sleeps."}
    cells = product(_conditions(languages), languages, range(3))
    kept = [(c, s, k, i) for (c, group, s), k, i in cells if group in ("", k)]
    translations = pd.DataFrame(kept, columns=["condition", "seed", "target", "id"])
    translations = translations.assign(
        text="The dog sleeps.", reference="Le chien dort.", n_neurons=3, continuation=translations.condition.map(said)
    )
    translations["found"] = np.where(translations.condition == "chosen", translations.target, languages[0])
    scores = translation_scores(translations)
    drawn = translations.query("id < 2").assign(source="", prompt="")
    neurons = NeuronSet.of({k: [(0, i), (0, i + 1)] for i, k in enumerate(languages)}, shape=(3, 9))
    return {
        "translations": pd.concat([translations.assign(way=way) for way in ("median", "mean")]),
        "translation": pd.concat([scores.assign(way=way) for way in ("median", "mean")]),
        "unconditional": drawn[["source", "target", "condition", "seed", "prompt", "continuation", "found"]],
        "median_overlap": pairwise_overlap(neurons),
    }


@cache
def of_every_study(languages):
    """Name -> table of all of them; made once, for several tests."""
    makers = (of_representations, of_methods, of_sharing, of_experts, of_editing, of_tuning, of_open_answers)
    return {name: table for make in (*makers, of_translations) for name, table in make(languages).items()}
