import math

import numpy as np
import pytest
import torch

import oracles
from mi_multilingual import NeuronSet, ablate, perplexity, token_rows
from mi_multilingual.evaluation.perplexity import RowLosses, change_interval, corpus_losses, corpus_rows, row_losses
from mi_multilingual.models.hooked import fingerprint
from mi_multilingual.tokens import Reading, TokenRows

WINDOW = 8


def with_bos(layout="stream", window=WINDOW):
    return Reading(window=window, layout=layout, bos="row")


def by_hand(model, corpus, language, layout="stream"):
    """Token losses by one softmax at a time, one row after another."""
    rows = token_rows(corpus, language, model.tokenizer, with_bos(layout))
    losses, n_bytes = [], 0
    for tokens, valid, sizes in zip(rows.tokens, rows.valid, rows.n_bytes, strict=True):
        with torch.no_grad():
            row = oracles.token_losses(model(tokens[None], return_type="logits")[0], tokens.tolist())
        losses += [loss for loss, ok in zip(row, valid[1:].tolist(), strict=True) if ok]
        n_bytes += int(sizes[1:][valid[1:]].sum())
    return losses, n_bytes


@pytest.mark.parametrize("layout", ["stream", "documents"])
def test_perplexity_equals_a_loop_over_tokens(model, corpus, layout):
    table = perplexity(model, corpus, reading=with_bos(layout), progress=False).set_index("language")
    for language in corpus.languages:
        losses, n_bytes = by_hand(model, corpus, language, layout)
        row = table.loc[language]
        assert row.n_tokens == len(losses)
        assert row.n_bytes == n_bytes
        assert row.nll == pytest.approx(math.fsum(losses) / len(losses), rel=1e-5)
        assert row.ppl == pytest.approx(math.exp(row.nll))
        assert row.bits_per_byte == pytest.approx(math.fsum(losses) / math.log(2) / n_bytes, rel=1e-5)


def neuron_set(model):
    random = torch.Generator().manual_seed(0)
    masks = torch.rand(3, model.cfg.n_layers, model.cfg.d_mlp, generator=random) < 0.3
    return NeuronSet(masks, ("en", "fr", "ja"), "test", model_fingerprint=fingerprint(model))


def test_the_interval_covers_the_true_change_in_about_95_of_100_samples():
    random, hits, n_samples = np.random.default_rng(0), 0, 200
    for _ in range(n_samples):
        n_tokens = torch.from_numpy(random.integers(5, 20, 80))
        base = torch.zeros(80, dtype=torch.float64)
        difference = torch.from_numpy(random.normal(0.1, 0.5, 80)) * n_tokens
        losses = [RowLosses(nll, n_tokens, n_tokens) for nll in (base + difference, base)]
        change, low, high = change_interval(*losses)
        assert change == pytest.approx(
            oracles.bootstrap_mean_change(difference.tolist(), [0.0] * 80, n_tokens.tolist())
        )
        hits += low <= 0.1 <= high
    assert 0.88 <= hits / n_samples <= 0.99


def test_rows_keep_their_order_whatever_the_ablation(ungated, corpus):
    rows = token_rows(corpus, "en", ungated.tokenizer, with_bos("documents"))
    with ablate(ungated, neuron_set(ungated)["en"]):
        off = row_losses(ungated, rows)
    assert torch.equal(off.n_tokens, row_losses(ungated, rows).n_tokens)


def test_losses_of_all_languages_together_are_those_of_each(model, corpus):
    rows = corpus_rows(model, corpus, with_bos("documents", window=12))
    together = corpus_losses(model, rows)
    for k, text in rows.items():
        # one row at a time, so that nothing is reordered
        alone = [row_losses(model, next(take_row(text, i).batches(1))) for i in range(len(text.tokens))]
        torch.testing.assert_close(together[k].nll, torch.cat([a.nll for a in alone]), atol=1e-4, rtol=1e-5)
        assert torch.equal(together[k].n_tokens, torch.cat([a.n_tokens for a in alone]))
        assert torch.equal(together[k].n_bytes, torch.cat([a.n_bytes for a in alone]))


def take_row(rows, i):
    parts = (rows.tokens, rows.valid, rows.n_bytes, rows.document)
    return TokenRows(rows.language, *(part[i : i + 1] for part in parts))
