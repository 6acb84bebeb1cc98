"""How much a language's likelihood hangs on each neuron: gradient times activation."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ..corpora import Corpus
from ..detectors.entropy import at_least_two
from ..models.hooked import HookedModel, fingerprint, max_window, model_name, site_of
from ..neurons import NeuronScores
from ..tokens import TokenRows, token_rows

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
