"""Dense MLPs looked at as mixtures of experts: frequencies, families, pruning, export."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import checkpoints
import oracles
from claims import experts as claims
from claims.claim import HOLDS, OPEN, verdict
from mi_multilingual import (
    TYPES,
    Intervention,
    Reading,
    Routing,
    ablate,
    expert_frequency,
    expert_study,
    expert_table,
    expert_types,
    export,
    family_table,
    load,
    load_corpus,
    load_model,
    planted_model,
    planted_text,
    prune,
    pruning_curve,
    pruning_study,
    record,
    save,
    site_of,
    split_experts,
    token_rows,
    tuned_table,
)
from mi_multilingual.evaluation.perplexity import corpus_rows, row_losses
from mi_multilingual.evidence import routing as routing_module
from mi_multilingual.evidence.routing import balanced_clusters
from mi_multilingual.models.hooked import run_trunk
from mi_multilingual.report.page import write_report
from mi_multilingual.studies.experts import pruned_experts, shared_out
from mi_multilingual.studies.given import Given
from mi_multilingual.studies.table import STUDIES, study_settings
from mi_multilingual.tokens import DOCUMENTS, TOKENS_PER_BATCH


@torch.no_grad()
def activations_of(model, row):
    """The product at every position of one row: (layer, pos, neuron)."""
    site, seen = site_of(model, "post"), {}
    hooks = [
        (site.hook_name(i), lambda x, hook, i=i: seen.__setitem__(i, site.value(x)[0]))
        for i in range(model.cfg.n_layers)
    ]
    run_trunk(model, row[None], hooks=hooks)
    return torch.stack([seen[i] for i in range(model.cfg.n_layers)])


def scattered(model, n_experts, seed=0):
    """Experts of equal size, at random places."""
    random = torch.Generator().manual_seed(seed)
    n = model.cfg.d_mlp
    order = torch.stack([torch.randperm(n, generator=random) for _ in range(model.cfg.n_layers)])
    return order.argsort(dim=1) % n_experts


@pytest.mark.parametrize("reading", [DOCUMENTS, Reading(window=9, bos="count")], ids=["documents", "stream"])
def test_frequencies_are_those_of_every_token_alone(model, corpus, reading, monkeypatch):
    monkeypatch.setitem(TOKENS_PER_BATCH, "statistics", 30)
    experts = scattered(model, 6)
    found = expert_frequency(model, corpus, experts, rate=1 / 3, reading=reading, progress=False)
    assert found.n_used == 2
    for k, language in enumerate(corpus.languages):
        rows = token_rows(corpus, language, model.tokenizer, reading.for_model(model))
        used = torch.zeros(model.cfg.n_layers, 6, dtype=torch.int64)
        for row, valid in zip(rows.tokens, rows.valid, strict=True):
            values = activations_of(model, row)
            for pos in valid.nonzero().flatten().tolist():
                for layer in range(model.cfg.n_layers):
                    for e in oracles.experts_used(values[layer, pos].tolist(), experts[layer].tolist(), 2):
                        used[layer, e] += 1
        assert torch.equal(found.used[..., k], used)
        assert int(found.n_tokens[k]) == rows.n_tokens
    assert torch.allclose(found.frequency().sum(dim=1), torch.tensor(2.0, dtype=torch.float64))


def test_of_equal_sums_the_lower_number_is_used():
    sums = torch.tensor([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert routing_module.most_active(sums, 2).tolist() == [[False, True, True, False], [True, True, False, False]]


def test_routing_adds_up_and_is_kept(model, corpus, tmp_path):
    experts = split_experts(model, 4)
    halves = [type(corpus)({k: d[part] for k, d in corpus.documents.items()}, "h") for part in (slice(1), slice(1, 3))]
    a, b = (expert_frequency(model, half, experts, reading=DOCUMENTS, progress=False) for half in halves)
    whole = expert_frequency(model, corpus, experts, reading=DOCUMENTS, progress=False)
    assert torch.equal(sum([a, b]).used, whole.used)
    assert torch.equal((a + b).n_tokens, whole.n_tokens)
    save(whole, tmp_path / "routing.safetensors")
    assert torch.equal(load(tmp_path / "routing.safetensors", Routing).used, whole.used)
    with pytest.raises(ValueError, match="experts must be the same"):
        _ = a + replace(b, experts=b.experts.flip(1))


@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 10**6))
def test_clusters_are_of_one_size_and_find_what_was_planted(n_clusters, size, seed):
    random = np.random.default_rng(seed)
    centres = 20 * np.eye(n_clusters, 8)
    truth = random.permutation(np.repeat(np.arange(n_clusters), size))
    found = balanced_clusters(centres[truth] + 0.1 * random.normal(size=(len(truth), 8)), n_clusters, seed=seed)
    assert np.bincount(found).tolist() == [size] * n_clusters
    again = balanced_clusters(random.normal(size=(len(truth), 8)), n_clusters, seed=seed)
    assert np.bincount(again).tolist() == [size] * n_clusters
    if len(set(zip(truth.tolist(), found.tolist(), strict=True))) != n_clusters:
        pytest.fail(f"clusters {found} for {truth}")


def test_experts_of_every_split_are_of_one_size(model):
    for method in ("contiguous", "clustered"):
        experts = split_experts(model, 4, method=method)
        assert experts.shape == (model.cfg.n_layers, model.cfg.d_mlp)
        assert all(row.bincount().tolist() == [6] * 4 for row in experts)
    assert split_experts(model, 4)[0].tolist() == [j // 6 for j in range(24)]


@given(
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6),
    st.integers(2, 20),
    st.floats(0.05, 0.95),
)
def test_layers_lose_experts_in_proportion_up_to_all_but_one(weights, n_experts, rate):
    each = round(rate * n_experts)
    assume(1 <= each < n_experts)
    total, most = each * len(weights), n_experts - 1
    found = shared_out(total, np.array(weights), most)
    assert found.sum() == total
    assert found.min() >= 0
    assert found.max() <= most
    if min(weights) > 1e-3:
        exact = oracles.layer_experts(total, weights, most)
        assert np.abs(found - exact).max() < 1 + 1e-6


def routing_of(used, n_tokens=100):
    used = torch.as_tensor(used)
    n_layers, n_experts, n_languages = used.shape
    experts = (torch.arange(2 * n_experts) % n_experts).repeat(n_layers, 1)
    languages = ("en", "de", "fr", "ja", "zh")[:n_languages]
    tokens = torch.full((n_languages,), n_tokens)
    return Routing(used, tokens, experts, 2, languages, "post", "m", "f", "c", DOCUMENTS)


@given(st.integers(0, 10**6), st.sampled_from([0.25, 0.5, 0.75]))
def test_the_least_frequent_experts_are_pruned(seed, rate):
    used = torch.randint(0, 4, (3, 4, 2), generator=torch.Generator().manual_seed(seed))
    routing = routing_of(used)
    neurons = prune(routing, rate=rate)
    for k, language in enumerate(routing.languages):
        for layer in range(3):
            counts = used[layer, :, k].tolist()
            least = sorted(range(4), key=lambda e: (counts[e], e))[: round(4 * rate)]
            expected = [expert in least for expert in routing.experts[layer].tolist()]
            assert neurons[language].union()[layer].tolist() == expected


def test_layers_that_are_seldom_active_lose_more(model, corpus):
    routing = expert_frequency(model, corpus, split_experts(model, 8), reading=DOCUMENTS, progress=False)
    stats = record(model, corpus, reading=DOCUMENTS, progress=False)
    active = stats.active.clone()
    active[0], active[1] = stats.n_tokens, 0  # the first layer always, the second never
    n = pruned_experts(routing, 0.5, replace(stats, active=active))
    assert n.tolist() == [[1, 7]] * 3
    sizes = prune(routing, rate=0.5, stats=replace(stats, active=active)).counts()
    assert sizes.groupby("layer").n_neurons.unique().map(list).to_dict() == {0: [3], 1: [21]}


def test_types_are_by_the_languages_that_use_an_expert_often():
    # Of four experts two are frequent: 0 in all languages, 1 in en, 2 in de and fr, 3 in none.
    used = torch.tensor([[[90, 90, 90], [50, 10, 10], [40, 60, 60], [20, 40, 40]]])
    table = expert_types(routing_of(used)).query("layer == 0").set_index("type")
    assert table.n_experts.to_dict() == {"all-shared": 1, "partial-shared": 1, "specific": 1, "non-activated": 1}
    expected = oracles.shares_by_chance([0.5] * 3)
    assert [table.chance[name] for name in TYPES] == pytest.approx([expected[name] for name in TYPES])


def test_planted_experts_are_found_and_are_the_costly_ones():
    planted = planted_model(effect=3.0, noise=0.3)
    languages, n = planted.causal.groups, planted.model.cfg.d_mlp
    n_experts = 8
    masks = planted.correlational.masks & (planted.correlational.masks.sum(0) == 1)
    experts = torch.full((planted.model.cfg.n_layers, n), -1)
    for layer in range(len(experts)):
        for k in range(len(languages)):
            experts[layer, masks[k, layer]] = k
        places = [e for e in range(n_experts) for _ in range(n // n_experts - int((experts[layer] == e).sum()))]
        experts[layer, experts[layer] == -1] = torch.tensor(places)
    text = planted_text(planted, 400)
    routing = expert_frequency(planted.model, text, experts, rate=1 / n_experts, reading=DOCUMENTS, progress=False)
    assert torch.equal(routing.frequency().argmax(dim=1), torch.arange(len(languages)).repeat(len(experts), 1))
    outputs = pruning_study(
        planted.model, text, routing, rates=[7 / 8, 1 / 8], seeds=(0, 1, 2), reading=DOCUMENTS, progress=False
    )
    curve = pruning_curve(outputs).query("language == ''").set_index("rate")
    # All but the language's own expert are off: it alone does what the model does for its language.
    assert curve.change[7 / 8] < 0.05 * curve.random_change[7 / 8]
    assert curve.beyond_high[7 / 8] < 0


def test_losses_without_experts_are_those_of_weights_at_zero(model, corpus):
    routing = expert_frequency(model, corpus, split_experts(model, 4), reading=DOCUMENTS, progress=False)
    outputs = pruning_study(model, corpus, routing, rates=[0.5], seeds=(0, 1), reading=DOCUMENTS, progress=False)
    rows = corpus_rows(model, corpus, DOCUMENTS, progress=False)
    for language in corpus.languages:
        part = outputs[(outputs.group == language) & (outputs.condition == "chosen")].sort_values("row")
        assert part.intact.to_numpy() == pytest.approx(row_losses(model, rows[language]).nll.numpy(), abs=1e-4)
        with ablate(model, prune(routing, rate=0.5)[language]):
            expected = row_losses(model, rows[language]).nll.numpy()
        assert part.nll.to_numpy() == pytest.approx(expected, abs=1e-4)
        assert (outputs[outputs.group == language].n_neurons == 2 * 12).all()
    assert len(outputs) == 3 * 3 * (1 + 2)
    curve = pruning_curve(outputs).set_index("language")
    chosen = outputs[outputs.condition == "chosen"]
    assert curve.change[""] == pytest.approx((chosen.nll - chosen.intact).sum() / chosen.n_tokens.sum())
    random = outputs[outputs.condition == "random"]
    assert curve.random_change[""] == pytest.approx((random.nll - random.intact).sum() / random.n_tokens.sum())
    assert (curve.beyond - (curve.change - curve.random_change)).abs().max() < 1e-9
    assert ((curve.beyond_low <= curve.beyond) & (curve.beyond <= curve.beyond_high)).all()


def test_a_pruned_model_is_a_checkpoint_that_transformers_loads(model, corpus, tmp_path):
    from transformers import AutoModelForCausalLM

    name = "opt" if model.cfg.act_fn == "relu" else "llama-grouped"
    checkpoint = checkpoints.checkpoint(name, tmp_path / "model")
    plain = load_model(checkpoint, device="cpu")
    routing = expert_frequency(plain, corpus, split_experts(plain, 4), reading=DOCUMENTS, progress=False)
    neurons = prune(routing, rate=0.5)["fr"]
    export(checkpoint, Intervention("zero", neurons), folder=tmp_path / "pruned")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned").eval()
    ids = torch.tensor([plain.tokenizer("Le chien dort.")["input_ids"]])
    with torch.no_grad(), ablate(plain, neurons):
        expected = plain(ids)
        assert torch.allclose(loaded(ids).logits, expected, atol=1e-4)


def test_a_tuned_model_is_held_beside_its_base(model, corpus):
    same = expert_study(model, corpus, tuned=model, n_experts=4, reading=DOCUMENTS, progress=False)
    table = tuned_table(same["base"], same["tuned"])
    assert (table.moved == 0).all()
    assert table.cosine.to_list() == pytest.approx([1.0] * len(table))
    swapped = replace(same["tuned"], used=same["base"].used.flip(1))
    moved = tuned_table(same["base"], swapped).set_index(["layer", "language"]).moved
    first = same["base"].frequency()[0, :, 0]
    assert moved[0, "en"] == pytest.approx(float((first - first.flip(0)).abs().sum() / 2))
    with pytest.raises(ValueError, match="same languages and experts"):
        tuned_table(same["base"], replace(swapped, languages=("a", "b", "c")))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, c, r: split_experts(m, 5), "divide the 24 neurons of a layer, got 5"),
        (lambda m, c, r: split_experts(m, 4, method="random"), "method must be one of contiguous, clustered"),
        (lambda m, c, r: expert_frequency(m, c, r.experts[:1]), "all of one size"),
        (lambda m, c, r: expert_frequency(m, c, r.experts, rate=0.01), "rate must be at least 1/4"),
        (lambda m, c, r: prune(r, rate=0.99), "leave one, got 0.99, which takes 4"),
        (lambda m, c, r: prune(r, rate=0.01), "at least one of the 4 experts"),
        (lambda m, c, r: pruning_study(m, c, r, seeds=()), "at least one number each"),
        (lambda m, c, r: pruning_study(m, c, r, rates=()), "at least one number each"),
        (lambda m, c, r: pruning_study(m, c, r, rates=[0.5], seeds=(1, 1)), "seeds must be different"),
        (lambda m, c, r: pruning_study(m, c, replace(r, model_fingerprint="x"), rates=[0.5]), "model"),
        (
            lambda m, c, r: prune(r, rate=0.5, stats=record(m, c.take(["en"]), reading=DOCUMENTS, progress=False)),
            "stats must be of the same model and languages",
        ),
        (
            lambda m, c, r: prune(r, rate=0.5, stats=record(m, c, threshold=0.5, reading=DOCUMENTS, progress=False)),
            "at the gate above 0, got .* above 0.5",
        ),
    ],
)
def test_mistakes_are_told(ungated, corpus, call, message):
    routing = expert_frequency(ungated, corpus, split_experts(ungated, 4), reading=DOCUMENTS, progress=False)
    with pytest.raises(ValueError, match=message):
        call(ungated, corpus, routing)


def test_activations_that_are_not_finite_are_told(ungated, corpus):
    weight = ungated.blocks[1].mlp.W_in
    before = weight.detach().clone()
    with torch.no_grad():
        weight[:, 5] = torch.nan
    try:
        with pytest.raises(ValueError, match="got others in layer 1 on 'en'"):
            expert_frequency(ungated, corpus, split_experts(ungated, 4), reading=DOCUMENTS, progress=False)
    finally:
        with torch.no_grad():
            weight.copy_(before)


@pytest.fixture(scope="module")
def tables(demo_model):
    languages = ["en", "de", "fr", "ja"]
    found, measured = (
        load_corpus("demo", languages=languages, split=split, max_documents=8) for split in ("identify", "evaluate")
    )
    how = study_settings("experts", {"n_documents": 6})
    return STUDIES["experts"].run(Given(demo_model, found, measured, DOCUMENTS, how, seeds=(0,), progress=False))


def test_the_whole_study_gives_its_tables(tables, tmp_path):
    assert tuple(tables) == STUDIES["experts"].tables
    assert tables["experts"].groupby(["layer", "language"]).frequency.sum().to_list() == pytest.approx([4.0] * 16)
    assert tables["expert_tuned"].empty
    assert set(tables["pruning"].layers) == {"uniform", "layer-wise"}
    assert sorted(set(tables["pruning"].rate)) == [0.125, 0.25, 0.5]
    for name, table in tables.items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for section in ("experts", "expert-families", "pruning"):
        assert f'id="section-{section}"' in page
    assert 'id="section-expert-tuned"' not in page


def test_experts_as_rows_have_intervals(model, corpus):
    routing = expert_frequency(model, corpus, split_experts(model, 4), reading=DOCUMENTS, progress=False)
    table = expert_table(routing)
    assert ((table.low <= table.frequency) & (table.frequency <= table.high)).all()
    row = table.iloc[5]
    k = corpus.languages.index(row.language)
    assert row.frequency == pytest.approx(routing.used[row.layer, row.expert, k].item() / row.n_tokens)
    similarity = routing.similarity()
    vectors = routing.frequency().flatten(0, 1).T
    expected = float(vectors[0] @ vectors[1] / vectors[0].norm() / vectors[1].norm())
    assert similarity.loc["en", "fr"] == pytest.approx(expected)


def test_families_need_languages_that_are_known_and_related():
    used = torch.randint(1, 50, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    routing = routing_of(used)
    assert len(family_table({"base": routing}, permutations=99)) == 1
    strangers = replace(routing, languages=("a", "b", "c", "d", "e"))
    assert family_table({"base": strangers}).empty


def claim(word):
    [found] = [c for c in claims.CLAIMS if word in c.text]
    return found


def test_claims_are_decided_by_made_up_tables():
    row = {"routing": "base", "r": 0.6, "low": 0.2, "high": 0.9}
    found = claim("family")
    assert verdict(found, found.measure({"expert_families": pd.DataFrame([row])})) == HOLDS
    empty = pd.DataFrame(columns=["routing", "r", "low", "high"])
    assert verdict(found, found.measure({"expert_families": empty})) == OPEN
    found = claim("all languages")
    # In layer 0 both languages use expert 2 of four most; in layer 1, where ties decide, the first one.
    rows = [(0, e, k, 0.7 if e == 2 else 0.1) for e in range(4) for k in ("en", "fr")]
    rows += [(1, e, k, 1.0 if e == 0 else 0.0) for e in range(4) for k in ("en", "fr")]
    types = [(layer, "all-shared", n, 0.1) for layer, n in ((-1, 2), (0, 1), (1, 1))]
    tables = {
        "experts": pd.DataFrame(rows, columns=["layer", "expert", "language", "frequency"]),
        "expert_types": pd.DataFrame(types, columns=["layer", "type", "n_experts", "chance"]),
    }
    effect = found.measure(tables)
    low, high = oracles.wilson(1, 4)
    assert (effect.value, effect.low, effect.high) == pytest.approx((0.15, low - 0.1, high - 0.1))
    found = claim("random")
    rows = [("uniform", rate, k, b, b - 0.1, b + 0.1) for rate in (0.1, 0.5) for k, b in (("", -0.3 * rate), ("en", 9))]
    columns = ["layers", "rate", "language", "beyond", "beyond_low", "beyond_high"]
    assert found.measure({"pruning": pd.DataFrame(rows, columns=columns)}).value == pytest.approx(-0.15)
    found = claim("Layer-wise")
    rows = [
        (kind, 0.5, "chosen", "en", i, 10.0 + i - lower * (1 + (i - 2.5) / 100), 5)
        for kind, lower in (("uniform", 0.0), ("layer-wise", 1.0))
        for i in range(6)
    ]
    columns = ["layers", "rate", "condition", "group", "row", "nll", "n_tokens"]
    effect = found.measure({"pruning_rows": pd.DataFrame(rows, columns=columns)})
    assert (effect.value, verdict(found, effect)) == (pytest.approx(-0.2), HOLDS)


def test_every_claim_can_be_measured_on_the_tables_of_a_run(tables):
    for found in claims.CLAIMS:
        effect = found.measure(tables)
        assert effect.low <= effect.value <= effect.high
        assert found.study == "experts"
