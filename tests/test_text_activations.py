import pytest
import torch

from mi_multilingual import TextActivations, record, record_texts
from mi_multilingual.corpora import Corpus
from mi_multilingual.models.hooked import run_trunk, site_of
from mi_multilingual.storage import load, save
from mi_multilingual.tokens import Reading

ALL = ("mean", "max", "last", "active")


def by_hand(model, text, name, window):
    """The four reductions of one document, read window by window without padding."""
    reader = site_of(model, name)
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = []
    for start in range(0, len(ids), window - 1):
        seen = {}
        piece = torch.tensor([[model.tokenizer.bos_token_id, *ids[start : start + window - 1]]])
        hooks = [
            (reader.hook_name(i), lambda x, hook, i=i, seen=seen: seen.__setitem__(i, reader.value(x)[0, 1:]))
            for i in range(model.cfg.n_layers)
        ]
        with torch.no_grad():
            run_trunk(model, piece, hooks=hooks)
        rows.append(torch.stack([seen[i] for i in range(model.cfg.n_layers)], dim=1))
    values = torch.cat(rows)
    return {"mean": values.mean(0), "max": values.amax(0), "last": values[-1], "active": (values > 0).sum(0).float()}


@pytest.mark.parametrize("name", ["gate", "post"])
@pytest.mark.parametrize("window", [6, 32])
def test_every_reduction_equals_the_text_read_alone(model, corpus, name, window):
    found = record_texts(
        model, corpus, reductions=ALL, site=name, reading=Reading(window=window, layout="documents"), progress=False
    )
    texts = [(k, i, text) for k, docs in corpus.documents.items() for i, text in enumerate(docs)]
    for place, (language, i, text) in enumerate(texts):
        expected = by_hand(model, text, name, window)
        for reduction in ALL:
            part = found[reduction]
            torch.testing.assert_close(part.values[place], expected[reduction], atol=1e-5, rtol=1e-4)
            assert int(part.document[place]) == i
            assert part.languages[int(part.language[place])] == language
    assert found["mean"].n_tokens.tolist() == [
        len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for _, _, text in texts
    ]


def test_counts_of_texts_add_up_to_recorded_statistics(model, corpus):
    stats = record(model, corpus, reading=Reading(layout="documents"), progress=False)
    texts = record_texts(model, corpus, reductions=["active"], progress=False)["active"]
    for k, language in enumerate(stats.languages):
        assert torch.equal(texts.values[texts.of(language)].sum(0).long(), stats.active[..., k])
        assert int(texts.n_tokens[texts.of(language)].sum()) == int(stats.n_tokens[k])


def test_saved_and_loaded_back_equal(model, corpus, tmp_path):
    texts = record_texts(model, corpus, progress=False)["mean"]
    save(texts, tmp_path / "t.safetensors")
    back = load(tmp_path / "t.safetensors", TextActivations)
    for name in ("values", "n_tokens", "language", "document"):
        assert torch.equal(getattr(back, name), getattr(texts, name))
    assert back.languages == texts.languages
    assert back.pick(torch.tensor([2, 0])).values.equal(texts.values[[2, 0]])


def test_mistakes_are_told(ungated, corpus):
    with pytest.raises(ValueError, match="reductions must be some of mean, max, last, active, got 'median'"):
        record_texts(ungated, corpus, reductions=["median"], progress=False)
    with pytest.raises(ValueError, match="no text of 'xx'"):
        record_texts(ungated, corpus, progress=False)["mean"].of("xx")
    empty = Corpus({"en": ("a", ""), "fr": ("b",)}, "with an empty text")
    with pytest.raises(ValueError, match="got none in document 1 of 'en'"):
        record_texts(ungated, empty, progress=False)


def test_a_number_that_is_not_finite_is_named(ungated, corpus):
    texts = record_texts(ungated, corpus, progress=False)["mean"]
    values = texts.values.clone()
    values[4, 1, 7] = torch.inf
    with pytest.raises(ValueError, match="got inf for neuron 7 in layer 1 in text 1 of 'fr'"):
        TextActivations(**{**vars(texts), "values": values})
