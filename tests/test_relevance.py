import pytest
import torch

from mi_multilingual import ablate, record_relevance, relevance, relevance_scores
from mi_multilingual.corpora import Corpus
from mi_multilingual.evidence.relevance import Relevance
from mi_multilingual.models.hooked import fingerprint, site_of
from mi_multilingual.neurons import NeuronSet
from mi_multilingual.tokens import TOKENS_PER_BATCH, Reading, token_rows

READING = Reading(window=8)


def log_likelihood(model, tokens, hooks=()):
    logits = model.run_with_hooks(tokens, return_type="logits", fwd_hooks=list(hooks)).double()
    return logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).sum().item()


def test_relevance_is_the_slope_of_the_likelihood_when_a_neuron_is_scaled(model, corpus):
    """d/ds of the log-likelihood with the activation at (1 + s) times itself, by finite differences."""
    small = corpus.take(["en", "fr"])
    found = record_relevance(model, small, reading=READING, progress=False)
    post = site_of(model, "post")
    step = 1e-2
    for k, language in enumerate(small.languages):
        rows = token_rows(small, language, model.tokenizer, Reading(window=8))
        for layer, neuron in [(0, 2), (0, 11), (1, 3), (1, 20)]:

            def scaled(s, neuron=neuron):
                def hook(x, hook):
                    x = x.clone()
                    x[..., neuron] *= 1 + s
                    return x

                return hook

            with torch.no_grad():
                up, down = (
                    log_likelihood(model, rows.tokens, [(post.hook_name(layer), scaled(s))]) for s in (step, -step)
                )
            expected = (up - down) / (2 * step) / int(rows.valid[:, 1:].sum())
            assert found.mean()[layer, neuron, k].item() == pytest.approx(expected, abs=2e-4)


def test_batching_and_padding_change_nothing(model, corpus, monkeypatch):
    together = record_relevance(model, corpus, reading=Reading(layout="documents"), progress=False)
    monkeypatch.setitem(TOKENS_PER_BATCH, "gradients", 1)
    alone = record_relevance(model, corpus, reading=Reading(layout="documents"), progress=False)
    torch.testing.assert_close(together.mean(), alone.mean(), atol=1e-7, rtol=1e-4)


def test_no_hook_and_no_gradient_stays_behind(model, corpus):
    tokens = torch.tensor([[1, 5, 9, 30]])
    with torch.no_grad():
        before = model(tokens, return_type="logits")
    record_relevance(model, corpus.take(["en", "fr"]), reading=READING, progress=False)
    with torch.no_grad():
        assert torch.equal(model(tokens, return_type="logits"), before)
    assert all(p.grad is None for p in model.parameters())


def test_a_neuron_that_writes_nothing_has_no_relevance(model, corpus):
    mask = torch.zeros(1, model.cfg.n_layers, model.cfg.d_mlp, dtype=torch.bool)
    mask[0, 0, 4] = True
    with ablate(model, NeuronSet(mask, ("en",), "m", model_fingerprint=fingerprint(model))):
        found = record_relevance(model, corpus, reading=READING, progress=False)
    assert found.mean()[0, 4].abs().max() == 0


def of_two_tokens(mean, languages):
    """Relevance of this mean over two tokens of each language."""
    return Relevance(2 * mean.double(), torch.full((len(languages),), 2), languages, "m", "", "", READING)


def test_the_relevance_of_two_texts_is_that_of_both_together(model, corpus):
    documents = Reading(layout="documents")
    first, rest = (
        Corpus({k: texts[part] for k, texts in corpus.documents.items()}, "s") for part in (slice(1), slice(1, 3))
    )
    parts = [record_relevance(model, c, reading=documents, progress=False) for c in (first, rest)]
    whole = record_relevance(model, corpus, reading=documents, progress=False)
    assert torch.equal(sum(parts).n_tokens, whole.n_tokens)
    torch.testing.assert_close(sum(parts).total, whole.total, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="reading must be the same in all Relevance that are added"):
        parts[0] + record_relevance(model, rest, reading=READING, progress=False)


def test_selection_ignores_what_works_against_the_language():
    values = torch.zeros(1, 40, 2)
    values[0, 3] = torch.tensor([1.0, -5.0])
    values[0, 7] = torch.tensor([-2.0, 0.5])
    values[0, 9] = torch.tensor([0.4, 0.4])
    recorded = of_two_tokens(values, ("en", "fr"))
    found = relevance(recorded, rate=0.05)
    assert found.to_frame().values.tolist() == [["en", 0, 3], ["fr", 0, 7]]
    ranked = relevance_scores(recorded)
    assert ranked.values[0, 3].tolist() == [6.0, -6.0]
    assert ranked.top(1)["fr"].to_frame().neuron.tolist() == [7]
    with pytest.raises(ValueError, match="at least two languages"):
        relevance(of_two_tokens(values[..., :1], ("en",)))
