import pytest
import torch

import checkpoints
from mi_multilingual import common_core, load_model, plnd, plnd_scores, record_impact
from mi_multilingual.corpora import Corpus
from mi_multilingual.evidence.impact import Impact, ranks
from mi_multilingual.models.hooked import is_gated
from mi_multilingual.tokens import DOCUMENTS

PARTS = ("mlp", "q", "k", "v")


@torch.no_grad()
def outputs(model, ids, off=None):
    """Outputs of the attention and MLP blocks of every layer, with one column of one part of one layer at zero.

    Only that block's own output is looked at, so later layers do not matter.
    """
    seen = {}

    def keep(name):
        return lambda x, hook: seen.__setitem__(name, x[0].clone())

    def zero(column):
        def hook(x, hook):
            x = x.clone()
            x.view(*x.shape[:2], -1)[..., column] = 0
            return x

        return hook

    hooks = []
    if off is not None:
        part, layer, column = off
        where = "mlp.hook_post" if part == "mlp" else f"attn.hook_{part}"
        hooks.append((f"blocks.{layer}.{where}", zero(column)))
    for i in range(model.cfg.n_layers):
        hooks += [(f"blocks.{i}.hook_mlp_out", keep(("mlp", i))), (f"blocks.{i}.hook_attn_out", keep(("v", i)))]
    model.run_with_hooks(torch.tensor([ids]), return_type=None, fwd_hooks=hooks)
    return seen


def documents(model, corpus):
    tok = model.tokenizer
    return {
        k: [[tok.bos_token_id, *tok(t, add_special_tokens=False)["input_ids"]] for t in d]
        for k, d in corpus.documents.items()
    }


def impact_by_switching_off(model, ids, part):
    """Norm over positions (BOS excluded) of the change of the block's output, one neuron after another."""
    plain = outputs(model, ids)
    n = model.cfg.d_mlp if part == "mlp" else model.blocks[0].attn.W_V.shape[0] * model.cfg.d_head
    if part == "v" and hasattr(model.cfg, "n_key_value_heads") and model.cfg.n_key_value_heads:
        n = model.cfg.n_key_value_heads * model.cfg.d_head
    table = torch.zeros(model.cfg.n_layers, n)
    for layer in range(model.cfg.n_layers):
        for column in range(n):
            changed = outputs(model, ids, (part, layer, column))[part, layer]
            table[layer, column] = (changed - plain[part, layer])[1:].norm()
    return table


def brute_ranks(table):
    """1 + neurons of the layer with more impact."""
    out = torch.zeros(table.shape, dtype=torch.int64)
    for i, row in enumerate(table.tolist()):
        for j, x in enumerate(row):
            out[i, j] = 1 + sum(y > x for y in row) if x > 0 else len(row) + 1
    return out


@pytest.mark.slow
@pytest.mark.parametrize("part", ["mlp", "v"])
def test_mlp_and_value_impacts_are_what_switching_off_changes(model, corpus, part):
    small = corpus.take(["en", "fr"])
    found = record_impact(model, small, progress=False)
    for k, docs in enumerate(documents(model, small).values()):
        tables = [impact_by_switching_off(model, ids, part) for ids in docs]
        torch.testing.assert_close(found.least[part][..., k], torch.stack(tables).amin(0), atol=1e-5, rtol=1e-3)


@torch.no_grad()
def patterns(model, ids):
    """Queries, keys and attention pattern of every layer, one document."""
    rotated = "rot_" if model.cfg.positional_embedding_type == "rotary" else ""
    seen = {}
    names = [f"blocks.{i}.attn.hook_{n}" for i in range(model.cfg.n_layers) for n in (f"{rotated}q", f"{rotated}k")]
    hooks = [(name, lambda x, hook, name=name: seen.__setitem__(name, x[0].double())) for name in names]
    model.run_with_hooks(torch.tensor([ids]), return_type=None, fwd_hooks=hooks)
    return [(seen[names[2 * i]], seen[names[2 * i + 1]]) for i in range(model.cfg.n_layers)]


def attention(scores):
    later = torch.ones(scores.shape, dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def test_query_and_key_impacts_are_the_change_of_the_pattern(model, corpus):
    small = corpus.take(["en", "ja"])
    found = record_impact(model, small, progress=False)
    for k, docs in enumerate(documents(model, small).values()):
        least = {"q": None, "k": None}
        for ids in docs:
            tables = {"q": [], "k": []}
            for q, key in patterns(model, ids):
                group = q.shape[1] // key.shape[1]
                scale = q.shape[2] ** 0.5
                by_q = torch.zeros(q.shape[1], q.shape[2])
                for head in range(q.shape[1]):
                    scores = q[:, head] @ key[:, head // group].T / scale
                    plain = attention(scores)
                    for d in range(q.shape[2]):
                        without = scores - torch.outer(q[:, head, d], key[:, head // group, d]) / scale
                        by_q[head, d] = (attention(without) - plain)[1:].norm()
                tables["q"].append(by_q.flatten())
                tables["k"].append(by_q.square().view(key.shape[1], group, -1).sum(1).sqrt().flatten())
            for part, rows in tables.items():
                table = torch.stack(rows)
                least[part] = table if least[part] is None else torch.minimum(least[part], table)
        for part in ("q", "k"):
            torch.testing.assert_close(found.least[part][..., k], least[part], atol=1e-5, rtol=1e-3)


def test_the_released_score_adds_up_absolute_inputs(model, corpus):
    small = corpus.take(["en", "fr"])
    found = record_impact(model, small, score="released", progress=False)
    name = "hook_pre_linear" if is_gated(model) else "hook_pre"
    for k, docs in enumerate(documents(model, small).values()):
        tables = []
        for ids in docs:
            seen = {}
            hooks = [
                (f"blocks.{i}.mlp.{name}", lambda x, hook, i=i, seen=seen: seen.__setitem__(i, x[0, 1:].abs().sum(0)))
                for i in range(model.cfg.n_layers)
            ]
            with torch.no_grad():
                model.run_with_hooks(torch.tensor([ids]), return_type=None, fwd_hooks=hooks)
            tables.append(torch.stack([seen[i] for i in range(model.cfg.n_layers)]))
        torch.testing.assert_close(found.least["mlp"][..., k], torch.stack(tables).amin(0), atol=1e-4, rtol=1e-4)
        assert torch.equal(found.worst_rank["mlp"][..., k], torch.stack([brute_ranks(t) for t in tables]).amax(0))


def test_ranks_count_neurons_with_more_impact_and_put_the_silent_last():
    random = torch.Generator().manual_seed(0)
    impact = torch.randint(0, 4, (5, 2, 9), generator=random).float()
    assert torch.equal(ranks(impact), torch.stack([brute_ranks(t) for t in impact]))


def impact_of(worst_rank, least=None):
    worst_rank = torch.tensor(worst_rank)
    least = torch.ones(worst_rank.shape) if least is None else torch.tensor(least)
    return Impact(
        {"mlp": worst_rank}, {"mlp": least}, ("en", "fr"), "paper", torch.tensor([3, 3]), "m", "f", "c", DOCUMENTS
    )


def test_specific_is_important_for_all_documents_of_one_language_less_the_core():
    # one layer of four neurons: core, English, French, never
    impact = impact_of([[[1, 2], [2, 3], [4, 1], [4, 4]]])
    assert plnd(impact, rate=0.5).to_frame().values.tolist() == [["en", 0, 1], ["fr", 0, 2]]
    assert common_core(impact, rate=0.5).tolist() == [[True, False, False, False]]
    assert plnd(impact, rate=1.0).sizes().tolist() == [0, 0]


def test_epsilon_is_an_alternative_to_the_rate():
    impact = impact_of([[[1, 1], [2, 2]]], [[[0.5, 0.1], [0.2, 0.2]]])
    assert plnd(impact, epsilon=0.2).to_frame().values.tolist() == [["en", 0, 0]]
    assert plnd(impact, epsilon=0.15).to_frame().values.tolist() == [["en", 0, 0]]
    with pytest.raises(ValueError, match=r"epsilon must be an impact of at least 0, got -1\.0"):
        plnd(impact, epsilon=-1.0)


def test_the_ranking_prefers_neurons_that_few_rates_find_common():
    impact = impact_of([[[1, 4], [2, 3], [4, 1], [4, 4]]])
    scores = plnd_scores(impact)
    assert scores.top(1).to_frame().values.tolist() == [["en", 0, 0], ["fr", 0, 2]]
    assert scores.values[0, 3].tolist() == [-torch.inf, -torch.inf]


def test_parts_have_their_own_sets(model, corpus):
    found = record_impact(model, corpus, progress=False)
    sets = {part: plnd(found, rate=0.3, part=part) for part in PARTS}
    assert [s.part for s in sets.values()] == list(PARTS)
    with pytest.raises(ValueError, match="cannot combine sets"):
        sets["mlp"] | sets["q"]
    with pytest.raises(ValueError, match="score must be one of paper, released, got 'other'"):
        record_impact(model, corpus, score="other", progress=False)
    with pytest.raises(ValueError, match="part must be one of mlp, q, k, v, got 'o'"):
        plnd(found, part="o")


def test_the_impact_of_two_texts_is_that_of_both_together(model, corpus):
    cuts = (slice(1), slice(1, 3))
    parts = [
        record_impact(model, Corpus({k: d[cut] for k, d in corpus.documents.items()}, "s"), progress=False)
        for cut in cuts
    ]
    whole = record_impact(model, corpus, progress=False)
    assert torch.equal(sum(parts).n_documents, whole.n_documents)
    for part in PARTS:
        torch.testing.assert_close(sum(parts).least[part], whole.least[part], atol=1e-5, rtol=1e-4)
        same = (sum(parts).worst_rank[part] == whole.worst_rank[part]).double().mean()
        assert same > 0.95, "ranks of neurons whose impacts tie up to rounding may be swapped"


@pytest.mark.parametrize("kind", ["gpt-neox", "phi3"])
def test_a_bridge_without_rotated_queries_is_refused(kind, tmp_path, corpus):
    model = load_model(checkpoints.checkpoint(kind, tmp_path), backend="bridge", device="cpu")
    with pytest.raises(ValueError, match="queries and keys must be there after rotation"):
        record_impact(model, corpus, progress=False)
