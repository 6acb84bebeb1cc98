import pytest
import torch

from mi_multilingual import TYPES, answer_token, attribution, contribution_scores, effective_scores
from mi_multilingual.analysis.attribution import final_residual
from mi_multilingual.corpora import Corpus
from mi_multilingual.evidence.sharing import input_ids, parallel_activations
from mi_multilingual.models.hooked import site_of
from mi_multilingual.tokens import DOCUMENTS


def activations(model, corpus, language):
    ids = input_ids(model, corpus, language, DOCUMENTS)
    return ids, parallel_activations(model, site_of(model, "post"), [ids], "last")[0]


def test_contribution_is_activation_times_the_norm_of_the_output_row(model, corpus):
    _, activation = activations(model, corpus, "en")
    ours = contribution_scores(model, activation)
    for layer in range(model.cfg.n_layers):
        for j in range(model.cfg.d_mlp):
            size = sum(x * x for x in model.blocks[layer].mlp.W_out[j].tolist()) ** 0.5
            assert ours[1, layer, j].item() == pytest.approx(abs(activation[1, layer, j].item()) * size, rel=1e-4)


def test_effective_score_is_the_neurons_vector_times_the_unembedding(model, corpus):
    _, activation = activations(model, corpus, "en")
    answers = torch.tensor([7, 11, 13])
    ours = effective_scores(model, activation, answers)
    for i, y in enumerate(answers.tolist()):
        for layer in range(model.cfg.n_layers):
            for j in range(model.cfg.d_mlp):
                added = activation[i, layer, j] * model.blocks[layer].mlp.W_out[j]
                assert ours[i, layer, j].item() == pytest.approx((added @ model.W_U[:, y]).item(), abs=1e-4)


@torch.no_grad()
def test_with_the_norm_it_is_what_the_logit_loses_at_the_norms_own_scale(model, corpus):
    ids, activation = activations(model, corpus, "fr")
    final = final_residual(model, ids)
    answers = torch.tensor([5, 6, 7])
    ours = effective_scores(model, activation, answers, final)
    weight = model.ln_final.weight if hasattr(model.ln_final, "weight") else model.ln_final.w
    for i, y in enumerate(answers.tolist()):
        x = final[i].double()
        centred = x - x.mean() if model.cfg.normalization_type == "LN" else x
        scale = (centred.square().mean() + model.cfg.eps).sqrt()
        for layer in range(model.cfg.n_layers):
            for j in range(0, model.cfg.d_mlp, 5):
                added = (activation[i, layer, j] * model.blocks[layer].mlp.W_out[j]).double()
                if model.cfg.normalization_type == "LN":
                    added = added - added.mean()
                expected = ((added / scale * weight.double()) @ model.W_U[:, y].double()).item()
                assert ours[i, layer, j].item() == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_all_parts_of_the_residual_stream_add_up_to_the_logit(model, corpus):
    """Direct attributions of the whole final residual give the logit less the constants."""
    from mi_multilingual.analysis.attribution import norm_transposed

    ids = input_ids(model, corpus, "en", DOCUMENTS)
    final = final_residual(model, ids)
    y = 9
    direction = model.W_U[:, y].detach().float()[None].expand(len(ids), -1)
    ours = (norm_transposed(model, direction, final) * final).sum(dim=1)
    zero = model.ln_final(torch.zeros(1, 1, final.shape[1]))[0, 0] @ model.W_U[:, y]
    for i, row in enumerate(ids):
        logit = model(torch.tensor([row]), return_type="logits")[0, -1, y]
        bias = model.b_U[y].item() if getattr(model, "b_U", None) is not None else 0.0
        assert ours[i].item() == pytest.approx((logit - zero).item() - bias, abs=1e-3)


def test_the_answer_token_stands_after_the_prompt_with_a_space_only_where_languages_write_one(model):
    tok = model.tokenizer
    with_space = tok("The dog sleeps under", add_special_tokens=False)["input_ids"]
    n = len(tok("The dog", add_special_tokens=False)["input_ids"])
    assert answer_token(tok, "The dog", "sleeps under", "en") == with_space[n]
    joined = tok("犬が古い木", add_special_tokens=False)["input_ids"]
    n = len(tok("犬が", add_special_tokens=False)["input_ids"])
    assert answer_token(tok, "犬が", "古い木", "ja") == joined[n]
    with pytest.raises(ValueError, match="adds no token"):
        answer_token(tok, "犬が", "", "zh")


def test_the_table_counts_types_among_the_highest_contributions(model, corpus):
    answers = Corpus(dict.fromkeys(corpus.languages, ("tea", "tea", "tea")), "answers")
    rate, threshold = 0.25, 0.02
    table = attribution(model, corpus, answers, rate=rate, threshold=threshold, progress=False)
    assert len(table) == len(corpus.languages) * model.cfg.n_layers * len(TYPES)
    sums = table.groupby(["language", "layer"])[["share", "top_share"]].sum()
    assert sums["share"].tolist() == pytest.approx([1.0] * len(sums))
    assert sums["top_share"].tolist() == pytest.approx([1.0] * len(sums))
    by_language = {k: activations(model, corpus, k)[1] for k in corpus.languages}
    n_top = round(rate * model.cfg.d_mlp)
    language, layer = "fr", 1
    expected = {name: [] for name in TYPES}
    highest = {name: [] for name in TYPES}
    for i in range(3):
        active = torch.stack([by_language[k][i, layer] > threshold for k in corpus.languages]).sum(0)
        kind = [
            "non-activated" if n == 0 else "specific" if n == 1 else "all-shared" if n == 3 else "partial-shared"
            for n in active.tolist()
        ]
        score = contribution_scores(model, by_language[language])[i, layer].tolist()
        top = sorted(range(len(score)), key=lambda j: -score[j])[:n_top]
        y = answer_token(model.tokenizer, corpus.documents[language][i], "tea", language)
        effect = effective_scores(model, by_language[language][i : i + 1], torch.tensor([y]))[0, layer].tolist()
        for name in TYPES:
            expected[name].append(sum(kind[j] == name for j in top) / n_top)
            mine = [effect[j] for j in range(len(kind)) if kind[j] == name]
            highest[name] += [max(mine)] if mine else []
    rows = table[(table.language == language) & (table.layer == layer)].set_index("type")
    for name in TYPES:
        assert rows.top_share[name] == pytest.approx(sum(expected[name]) / 3)
        if highest[name]:
            assert rows.effective_max[name] == pytest.approx(sum(highest[name]) / len(highest[name]), abs=1e-5)


def test_prompts_and_answers_must_fit(model, corpus):
    with pytest.raises(ValueError, match="answers must fit the"):
        attribution(model, corpus, corpus.take(["fr", "en", "ja"]), progress=False)
    with pytest.raises(ValueError, match="answers must fit the"):
        attribution(model, corpus, Corpus(dict.fromkeys(corpus.languages, ("a",)), "few"), progress=False)
