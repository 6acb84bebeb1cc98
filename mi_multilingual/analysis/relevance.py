"""Neurons that matter for a language's likelihood: gradient times activation."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ..corpora import Corpus, TokenRows, token_rows
from ..models import HookedModel, fingerprint, max_window, model_name
from ..models import site as site_of
from ..neurons import NeuronScores, NeuronSet
from .lape import at_least_two, select_by_entropy

TOKENS_A_BATCH = 1024


def record_relevance(
    model: HookedModel, corpus: Corpus, *, window: int | None = None, layout: str = "stream", progress: bool = True
) -> NeuronScores:
    """Mean over tokens of activation times gradient of the log-likelihood, nats a token, for every language.

    To first order this is what the language's log-likelihood loses when the neuron is switched off: importance, where
    an activation only shows preference. Activations are those that the output weights read (site "post"), and every
    token counts that `perplexity` scores.

    Raises:
        ValueError: fewer than two languages, text shorter than a window, or gradients that are not finite.

    Source: the idea of CRANE (2026), arXiv:2601.04664; gradient times activation as in Shrikumar et al. 2017.
    """
    at_least_two(corpus.languages)
    window = window or max_window(model)
    columns = []
    for language in tqdm(corpus.languages, desc="relevance", disable=not progress):
        rows = token_rows(corpus, language, model.tokenizer, window=window, layout=layout)
        total = torch.zeros(model.cfg.n_layers, model.cfg.d_mlp, dtype=torch.float64)
        n_tokens = 0
        for batch in rows.batches(max(1, TOKENS_A_BATCH // rows.tokens.shape[1])):
            total += batch_relevance(model, batch)
            n_tokens += int(batch.valid[:, 1:].sum())
        columns.append(total / max(1, n_tokens))
    values = torch.stack(columns, dim=-1)
    return NeuronScores(values, corpus.languages, "relevance", {}, model_name(model), fingerprint(model))


def batch_relevance(model: HookedModel, batch: TokenRows) -> Float[Tensor, "layer neuron"]:
    """Sum over the batch of activation times gradient of the log-likelihood of its tokens, float64."""
    post, kept = site_of(model, "post"), {}

    def keep(layer: int) -> Callable[[Tensor, object], Tensor]:
        def hook(activation: Float[Tensor, "batch pos neuron"], hook: object) -> Float[Tensor, "batch pos neuron"]:
            # A leaf of its own a layer would cut the graph: the gradient must flow on to the layers before.
            kept[layer] = activation if activation.requires_grad else activation.requires_grad_()
            return kept[layer]

        return hook

    layers = range(model.cfg.n_layers)
    device = model.cfg.device
    tokens, scored = batch.tokens.to(device), batch.valid[:, 1:].to(device)
    with torch.enable_grad():
        logits = model.run_with_hooks(
            tokens, return_type="logits", fwd_hooks=[(post.hook_name(layer), keep(layer)) for layer in layers]
        )
        likelihood = logits[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        total = likelihood.masked_fill(~scored, 0.0).sum()
        gradients = torch.autograd.grad(total, [kept[layer] for layer in layers])
    rows = [(kept[i].detach() * g).double().sum(dim=(0, 1)).cpu() for i, g in zip(layers, gradients, strict=True)]
    return torch.stack(rows)


def relevance(
    scores: NeuronScores, *, top_rate: float = 0.01, filter_rate: float = 0.95, activation_bar_ratio: float = 0.95
) -> NeuronSet:
    """Neurons whose relevance is concentrated in few languages, chosen as LAPE chooses.

    Relevance below zero, of neurons that work against the language's text, counts as zero. Parameters and errors are
    those of `lape`.

    Args:
        scores: what `record_relevance` returned.
    """
    parameters = {"top_rate": top_rate, "filter_rate": filter_rate, "activation_bar_ratio": activation_bar_ratio}
    at_least_two(scores.languages)
    return scores.to_set(select_by_entropy(scores.values.clamp(min=0), **parameters), **parameters)


def relevance_scores(scores: NeuronScores) -> NeuronScores:
    """Relevance as a ranking: to the language, less the mean over the other languages, nats a token.

    To first order this is how much more the language loses than the others when the neuron is switched off.
    """
    at_least_two(scores.languages)
    values = scores.values
    others = (values.sum(dim=-1, keepdim=True) - values) / (len(scores.languages) - 1)
    return replace(scores, values=values - others)
