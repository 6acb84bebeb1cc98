import numpy as np
import pandas as pd
import pytest

import mi_multilingual as mm
import speaker
from mi_multilingual.detectors.plnd import plnd
from mi_multilingual.experiments import context
from mi_multilingual.experiments.cells import cells_of
from mi_multilingual.experiments.config import Study
from mi_multilingual.studies.regions import EVERYWHERE

READING = mm.Reading(layout="documents")
TABLE = pd.DataFrame(
    [(k, "en", r, i, i + 1, "by number", -1, 2) for k in ("en", "fr", "ja") for i, r in enumerate(("one", "two"))],
    columns=["language", "pivot", "region", "first", "end", "rule", "below", "back"],
)
"""Of a model with two blocks, which has no three regions."""


@pytest.fixture(scope="module")
def studied(model, corpus):
    impact = mm.record_impact(model, corpus, reading=READING, progress=False)
    neurons = {"mlp": [plnd(impact, rate=0.5)], "attention": [plnd(impact, rate=0.5, part=p) for p in "qkv"]}
    items = [
        mm.Item(str(i), k, "words", texts[0][:6], (" tree", "犬", texts[1][:3]), i % 3)
        for k, texts in corpus.documents.items()
        for i in range(3)
    ]
    options = {"seeds": (0, 1), "reading": READING, "progress": False}
    return neurons, mm.region_study(model, corpus, neurons, TABLE, items, **options)


def test_a_region_s_neurons_are_off_as_by_hand(studied, model, corpus):
    neurons, outputs = studied
    cell = {"group": "fr", "structure": "attention", "region": "two", "condition": "chosen", "evaluated": "en"}
    mine = outputs[(outputs[list(cell)] == pd.Series(cell)).all(axis=1)]
    off = [one["fr"].in_layers([1]) for one in neurons["attention"]]
    assert set(mine.n_neurons) == {sum(int(one.union().sum()) for one in off)} != {0}
    with mm.steer(model, *(mm.Intervention("zero", one) for one in off)):
        loss = mm.perplexity(model, corpus, reading=READING, progress=False).set_index("language")
    rows = mine[mine.measure == "loss"]
    assert rows.value.sum() / rows.weight.sum() == pytest.approx(loss.nll["en"], abs=1e-5)
    assert set(mine[mine.measure == "margin"].unit) == {"0", "1", "2"}
    seeds = outputs[(outputs.condition == "random") & (outputs.region == EVERYWHERE) & (outputs.structure == "mlp")]
    assert set(seeds.seed) == {0, 1}
    whole = outputs[(outputs.region == EVERYWHERE) & (outputs.condition == "chosen")]
    sizes = {s: sum(one.sizes() for one in sets) for s, sets in neurons.items()}
    assert all(n == sizes[s][g] for s, g, n in zip(whole.structure, whole.group, whole.n_neurons, strict=True))


def test_effects_are_differences_of_the_same_rows(studied):
    _, outputs = studied
    effects = mm.region_effects(outputs)
    keys = ["group", "structure", "region", "evaluated", "measure"]
    assert not effects.duplicated(keys).any()
    assert set(effects[effects.group == "ja"].evaluated) == {"ja", "en"}, "its own language and the pivot"
    for row in effects.itertuples():
        same = (outputs.evaluated == row.evaluated) & (outputs.measure == row.measure)
        mine = same & (outputs.group == row.group) & (outputs.structure == row.structure)
        mine &= outputs.region == row.region
        total = {c: outputs[mine & (outputs.condition == c)] for c in ("chosen", "random")}
        intact = outputs[same & (outputs.condition == "intact")]
        weight = intact.weight.sum()
        change, random = (part.value.sum() / n / weight for part, n in zip(total.values(), (1, 2), strict=True))
        base = intact.value.sum() / weight
        assert (row.change, row.random_change) == pytest.approx((change - base, random - base))
        assert row.beyond == pytest.approx(change - random)
        assert row.beyond_low <= row.beyond + 1e-9
        assert row.beyond <= row.beyond_high + 1e-9
    assert np.allclose(effects.value - effects.intact, effects.change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neurons": {}}, "at least one set per structure"),
        ({"regions": TABLE.assign(language="xx")}, "neurons must be of languages that regions has"),
        (
            {"regions": TABLE.assign(pivot="de")},
            "text must be there in every language and in the pivot, got none in 'de'",
        ),
        ({"items": [mm.Item("a", "en", "t", "x", ("y", "z"), 0)]}, "questions must be there in every language"),
        ({"seeds": (0, 0)}, "seeds must be different numbers"),
    ],
)
def test_what_cannot_be_studied_is_refused(studied, model, corpus, change, message):
    given = {"neurons": studied[0], "regions": TABLE, "corpus": corpus, **change}
    with pytest.raises(ValueError, match=message):
        mm.region_study(model, progress=False, **given)
    with pytest.raises(ValueError, match="outputs must be of every condition, got none that is 'chosen'"):
        mm.region_effects(studied[1].query("condition != 'chosen'"))


def test_a_sweep_takes_the_regions_of_its_model(tmp_path, monkeypatch):
    hf_model, tokenizer = speaker.plain()
    hf_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for language, texts in speaker.TEXT.documents.items():
        (tmp_path / "texts" / f"{language}.txt").write_text("\n".join(texts))
    corpus = {"source": str(tmp_path / "texts"), "layout": "documents"}
    given = {"model": str(tmp_path / "model"), "corpus": corpus, "seeds": [], "ablated": ["l1", "l0"]}
    study = Study.model_validate({**given, "layers": ["understanding", "reasoning", "generation", "last"]})
    first = context.Context(study, tmp_path / "run")
    cells = cells_of(study, first.inputs())
    found = {(cell.group, cell.layers): first.layers(cell) for cell in cells}
    assert found["l1", "understanding"] == range(2), "until block 2 says words of l0"
    assert found["l1", "reasoning"] == range(2, 5)
    assert found["l1", "generation"] == range(5, 6)
    assert found["l1", "last"] == found["l0", "generation"] == range(4, 6), "the pivot has thirds"
    monkeypatch.setattr(context, "model_regions", None)
    again = context.Context(study, tmp_path / "run")
    assert {(cell.group, cell.layers): again.layers(cell) for cell in cells} == found, "read from the folder"


def test_types_of_neurons_have_no_regions():
    with pytest.raises(ValueError, match="are no languages, so they have no layers of generation"):
        Study.model_validate({"detector": "sharing", "site": "post", "evaluate": "facts", "layers": "generation"})
