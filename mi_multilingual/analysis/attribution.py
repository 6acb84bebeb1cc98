"""What each neuron adds to the answer: contribution scores and effective scores at the last prompt token."""

from collections.abc import Sequence

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..corpora import WITHOUT_SPACES, Corpus
from ..evidence.reading import check_finite, read
from ..evidence.sharing import TYPES, categories, check_arguments, input_ids, parallel_activations
from ..models.hooked import HookedModel, site_of, weight_of
from ..models.placed import at_hand
from ..neurons import rank
from ..tokens import Reading, pad_right

_INPUTS_AT_ONCE = 8


def contribution_scores(
    model: HookedModel, activation: Float[Tensor, "*input layer neuron"]
) -> Float[Tensor, "*input layer neuron"]:
    """|activation| times the norm of the neuron's output row: the size of what it adds to the residual stream.

    Source: Wang et al. 2024, arXiv:2406.09265, section 3.
    """
    return activation.abs() * _output_rows(model).norm(dim=-1)


def effective_scores(
    model: HookedModel,
    activation: Float[Tensor, "input layer neuron"],
    answers: Int[Tensor, " input"],
    final: Float[Tensor, "input d_model"] | None = None,
) -> Float[Tensor, "input layer neuron"]:
    """What each neuron adds to the answer token's logit directly: (activation * output row) . unembedding column.

    Args:
        activation: at the last prompt token, site "post".
        answers: id of the answer's first token, an input each.
        final: the residual stream after the last block at that token; given, the final norm is folded in, its scale
            held at what it is there. Without it, the norm is left out, as in the paper.

    Source: Wang et al. 2024, arXiv:2406.09265, section 3.
    """
    rows = _output_rows(model)
    unembedding = weight_of(model, "unembed.W_U").float().cpu()[:, answers].T
    direction = unembedding if final is None else norm_transposed(model, unembedding, final)
    return activation * einsum(rows, direction, "layer neuron model, input model -> input layer neuron")


def _output_rows(model: HookedModel) -> Float[Tensor, "layer neuron d_model"]:
    return torch.stack([weight_of(model, f"blocks.{i}.mlp.W_out").float().cpu() for i in range(model.cfg.n_layers)])


def norm_transposed(
    model: HookedModel, direction: Float[Tensor, "input d_model"], final: Float[Tensor, "input d_model"]
) -> Float[Tensor, "input d_model"]:
    """`direction` seen from before the final norm, whose scale is held at what it is for `final`."""
    weight, centres = norm_weight(model)
    x = final - final.mean(dim=1, keepdim=True) if centres else final
    scale = (x.square().mean(dim=1, keepdim=True) + float(model.cfg.eps)).sqrt()
    scaled = direction * weight / scale
    return scaled - scaled.mean(dim=1, keepdim=True) if centres else scaled


@torch.no_grad()
def norm_weight(model: HookedModel) -> tuple[Float[Tensor, " d_model"], bool]:
    """The weight of the final norm, and whether it centres what it gets.

    The norm is asked for them (by a vector of mean 0 and mean square 1, and by a constant one): the two kinds of model
    keep both in different places.
    """
    norm, d_model = model.ln_final, model.cfg.d_model

    def output(vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
        with at_hand(norm):
            weight = next(norm.parameters())
            return norm(vector.to(weight.device, weight.dtype)[None, None])[0, 0].float().cpu()

    signs = torch.tensor([1.0, -1.0]).repeat(d_model)[:d_model]
    shift = output(torch.zeros(d_model))
    # A norm that centres sends a constant vector to its bias.
    centres = bool((output(torch.ones(d_model)) - shift).abs().max() < 1e-2)
    return (output(signs) - shift) * signs, centres


def answer_token(tokenizer, prompt: str, answer: str, language: str) -> int:
    """Id of the first token of `answer` after `prompt`, joined by a space where the language writes spaces.

    Raises:
        ValueError: the answer adds no token.

    Source: after the code released with Wang et al. 2024, which leaves the space out for zh alone.
    """
    gap = "" if language in WITHOUT_SPACES else " "
    n_prompt = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    whole = tokenizer(prompt + gap + answer, add_special_tokens=False)["input_ids"]
    if len(whole) <= n_prompt:
        raise ValueError(f"the answer {answer!r} adds no token to the prompt {prompt[-40:]!r}; give a longer answer")
    return whole[n_prompt]


def attribution(
    model: HookedModel,
    prompts: Corpus,
    answers: Corpus,
    *,
    rate: float = 0.1,
    threshold: float = 0.0,
    bos: str = "tokenizer",
    progress: bool = True,
) -> pd.DataFrame:
    """Which types of neuron carry the answer, at the last token of parallel prompts: means of `attribution_by_input`.

    Args:
        prompts, answers: parallel prompts and their gold answers, aligned by position.
        rate: share of a layer's neurons, of highest contribution, among which the types are counted (the paper
            takes 800 of LLaMA's 11,008 or BLOOM's 16,384).
        threshold: of activity, which decides the type.
        bos: special tokens before every prompt (see `Reading`).

    Returns:
        one row per language, layer and type, means over inputs: the measures of `attribution_by_input`. NaN where no
        input had a neuron of the type.

    Raises:
        ValueError: prompts or answers that are not parallel, or activations that are not finite.
    """
    options = {"top": rank(rate, model.cfg.d_mlp, "rate"), "threshold": threshold, "bos": bos, "progress": progress}
    table = attribution_by_input(model, prompts, answers, **options).drop(columns=["input", "n_neurons"])
    order = {name: i for i, name in enumerate([*prompts.languages, *TYPES])}
    mean = table.groupby(["language", "layer", "type"], sort=False).mean().reset_index()
    return mean.sort_values(["language", "layer", "type"], key=lambda c: c.map(order) if c.name != "layer" else c)


@torch.no_grad()
def attribution_by_input(
    model: HookedModel,
    prompts: Corpus,
    answers: Corpus,
    *,
    top: int | float = 0.1,
    threshold: float = 0.0,
    site: str = "post",
    bos: str = "tokenizer",
    progress: bool = True,
) -> pd.DataFrame:
    """What the neurons of each type add to the answer, for every parallel prompt.

    Args:
        prompts, answers: parallel prompts and their gold answers, aligned by position.
        top: how many neurons of highest contribution per layer the types are counted among: from 1 on a number (the
            paper takes 800), below 1 a share of the layer.
        threshold: of activity, which decides the type.
        site: where activity is read; contributions are always those of the product that is written on.
        bos: special tokens before every prompt (see `Reading`).

    Returns:
        one row per language, input (its number), layer and type: n_neurons, share (of the layer's neurons), top_share
        (of its neurons of highest contribution), contribution_mean and contribution_sum (over the type's neurons, size
        of what they write), effective_max, effective_mean, effective_min (logits), and the same with the final norm
        folded in: normed_max, normed_mean, normed_min. Means and extremes are NaN where there is no such neuron.

    Raises:
        ValueError: prompts or answers that are not parallel, a `top` above the layer's neurons, or activations that
            are not finite.

    Source: Wang et al. 2024, arXiv:2406.09265, section 3.
    """
    check_arguments(prompts, [threshold], "last", None)
    _check_answers(prompts, answers)
    n_top = number_of(top, model.cfg.d_mlp)
    reading = Reading(layout="documents", bos=bos).for_model(model)
    ids = {k: input_ids(model, prompts, k, reading) for k in prompts.languages}
    gold = {k: torch.tensor(_answer_tokens(model, prompts, answers, k)) for k in prompts.languages}
    reader, typed_by = site_of(model, "post"), site_of(model, site)
    parts, n_inputs = [], len(ids[prompts.languages[0]])
    for start in tqdm(range(0, n_inputs, _INPUTS_AT_ONCE), desc="attribution", disable=not progress):
        chunk = range(start, min(start + _INPUTS_AT_ONCE, n_inputs))
        rows = [[ids[k][i] for i in chunk] for k in prompts.languages]
        activation = parallel_activations(model, reader, rows, "last")
        check_finite(
            activation,
            lambda at, first=start: f"for input {first + at[1]} in {prompts.languages[at[0]]!r}",
        )
        typed = activation if site == "post" else parallel_activations(model, typed_by, rows, "last")
        kind = categories(typed > threshold)
        contribution = contribution_scores(model, activation)
        top_ones = contribution.topk(n_top, dim=-1).indices
        is_top = torch.zeros_like(contribution, dtype=torch.bool).scatter(-1, top_ones, True)
        for k, language in enumerate(prompts.languages):
            answer, final = gold[language][list(chunk)], final_residual(model, rows[k])
            scores = {
                "contribution": contribution[k],
                "effective": effective_scores(model, activation[k], answer),
                "normed": effective_scores(model, activation[k], answer, final),
            }
            parts.append(_by_type(language, start, kind, is_top[k], scores))
    return pd.concat(parts, ignore_index=True)


def _check_answers(prompts: Corpus, answers: Corpus) -> None:
    """Raise unless there is one answer per prompt and language."""
    n_inputs = len(next(iter(prompts.documents.values())))
    if prompts.languages != answers.languages or any(len(a) != n_inputs for a in answers.documents.values()):
        raise ValueError(
            f"answers must fit the {n_inputs} prompts in {prompts.languages}, got answers in {answers.languages}; give "
            "one answer per prompt and language, in the same order"
        )


def number_of(top: int | float, total: int) -> int:
    """How many of `total` are meant by a number from 1 on, or by a share below it.

    Raises:
        ValueError: more than there are, or a share of less than half a one.
    """
    if top < 1:
        return rank(top, total, "top")
    if top != int(top) or top > total:
        raise ValueError(f"top must be a share below 1, or a whole number up to {total}, got {top}")
    return int(top)


def _answer_tokens(model: HookedModel, prompts: Corpus, answers: Corpus, language: str) -> list[int]:
    pairs = zip(prompts.documents[language], answers.documents[language], strict=True)
    return [answer_token(model.tokenizer, prompt, answer, language) for prompt, answer in pairs]


def _by_type(
    language: str,
    first: int,
    kind: Int[Tensor, "input layer neuron"],
    top: Tensor,
    scores: dict[str, Float[Tensor, "input layer neuron"]],
) -> pd.DataFrame:
    """One row an input, layer and type."""
    n_inputs, n_layers, _ = kind.shape
    frames = []
    for i, name in enumerate(TYPES):
        mine = kind == i
        n = mine.sum(dim=-1)
        columns: dict[str, Tensor] = {
            "n_neurons": n,
            "share": mine.float().mean(dim=-1),
            "top_share": (top & mine).sum(dim=-1) / top.sum(dim=-1),
        }
        for score, values in scores.items():
            total = values.masked_fill(~mine, 0.0).sum(dim=-1)
            if score == "contribution":
                columns[f"{score}_sum"] = total
            else:
                columns[f"{score}_max"] = values.masked_fill(~mine, -torch.inf).amax(dim=-1)
                columns[f"{score}_min"] = values.masked_fill(~mine, torch.inf).amin(dim=-1)
            columns[f"{score}_mean"] = total / n.clamp(min=1)
        empty = n == 0
        flat = {
            c: (v.double().masked_fill(empty, torch.nan) if "_m" in c else v).flatten().numpy()
            for c, v in columns.items()
        }
        index = pd.MultiIndex.from_product(
            [[language], range(first, first + n_inputs), range(n_layers), [name]],
            names=["language", "input", "layer", "type"],
        )
        frames.append(pd.DataFrame(flat, index=index).reset_index())
    return pd.concat(frames)


def final_residual(model: HookedModel, ids: Sequence[Sequence[int]]) -> Float[Tensor, "input d_model"]:
    """The residual stream after the last block, at the last token of every row."""
    padded, lengths = pad_right(ids)
    seen: list[Tensor] = []

    def take(_: str, value: Float[Tensor, "row pos d_model"]) -> None:
        seen.append(value[torch.arange(len(ids)), (lengths - 1).to(value.device)].float().cpu())

    read(model, padded, {"final": f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"}, take)
    return seen[0]
