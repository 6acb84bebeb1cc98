import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import checkpoints
from mi_multilingual import (
    NeuronScores,
    NeuronSet,
    Reading,
    Training,
    expert_frequency,
    load,
    load_corpus,
    load_model,
    record,
    record_impact,
    record_relevance,
    record_representations,
    record_texts,
    record_weight_change,
    save,
    sharing_categories,
    split_experts,
    tune,
)
from mi_multilingual.corpora import Corpus
from mi_multilingual.display import Summarised
from mi_multilingual.storage import HOMES, home
from mi_multilingual.tokens import language_rows

DOCUMENTS = Reading(layout="documents", bos="none", window=32)


@pytest.fixture(scope="module")
def nouns(ungated, corpus):
    """One of every noun that can be in a file."""
    some = NeuronSet.of({"fr": [(0, 1)]}, shape=(checkpoints.N_LAYERS, checkpoints.D_MLP))
    found = [
        record(ungated, corpus, reading=DOCUMENTS, progress=False),
        record_texts(ungated, corpus, reading=DOCUMENTS, progress=False)["mean"],
        record_impact(ungated, corpus, reading=DOCUMENTS, progress=False),
        record_relevance(ungated, corpus, reading=DOCUMENTS, progress=False),
        sharing_categories(ungated, corpus, reading=DOCUMENTS, progress=False),
        record_representations(ungated, corpus, reading=DOCUMENTS, progress=False),
        expert_frequency(ungated, corpus, split_experts(ungated, 2), rate=0.5, reading=DOCUMENTS, progress=False),
        record_weight_change(ungated, {"en": ungated, "fr": ungated}),
        NeuronSet(torch.eye(6).bool().view(2, 3, 6), ("none", "日本"), "m", {"rate": 0.1, "layers": [0, 1]}, "m", "f"),
        NeuronScores(torch.tensor([[[1.0, -torch.inf]]]), ("en", "fr"), "m", {"a": 1}),
        DOCUMENTS,
        Training(steps=1),
        tune(ungated, corpus, some, training=Training(steps=1), reading=DOCUMENTS, progress=False),
    ]
    return {type(noun).__name__: noun for noun in found}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return one == other


@pytest.mark.parametrize("name", sorted(HOMES))
def test_every_noun_comes_back_as_what_it_was(nouns, name, tmp_path):
    save(nouns[name], tmp_path / "noun.safetensors")
    back = load(tmp_path / "noun.safetensors")
    assert type(back) is type(nouns[name]) is home(name)
    assert all(same(getattr(nouns[name], field), getattr(back, field)) for field in back.__dataclass_fields__)
    assert list(tmp_path.iterdir()) == [tmp_path / "noun.safetensors"], "nothing half written stays behind"


@pytest.mark.parametrize("name", sorted(set(HOMES) - {"Reading", "Training"}))
def test_every_noun_says_in_a_line_what_it_is_and_in_a_notebook_in_a_table(nouns, name):
    noun = nouns[name]
    assert isinstance(noun, Summarised)
    assert repr(noun).startswith(f"{name}(")
    assert len(repr(noun)) < 200
    assert "tensor" not in repr(noun)
    assert noun._repr_html_().count("<tr>") == 1 + len(next(iter(noun.summary()[1].values())))


def test_names_from_files_are_escaped_in_a_notebook():
    evil = NeuronSet(torch.zeros(1, 1, 1, dtype=torch.bool), ("<script>",), "<b>")
    assert "<script>" not in evil._repr_html_()
    assert "<b>" not in evil._repr_html_()


def test_a_corpus_shows_its_sizes_and_not_its_text(corpus):
    assert repr(corpus) == "Corpus(sentences of the tests: en 3, fr 3, ja 3)"


def test_sums_of_shards(ungated, corpus):
    shards = [Corpus({k: (d[i],) for k, d in corpus.documents.items()}, "s") for i in range(3)]
    whole = record_texts(ungated, corpus, reading=DOCUMENTS, progress=False)["mean"]
    texts = sum(record_texts(ungated, c, reading=DOCUMENTS, progress=False)["mean"] for c in shards)
    order = torch.tensor([i for k in range(3) for i in range(k, 9, 3)]).argsort()
    torch.testing.assert_close(texts.pick(order.argsort()).values, whole.values, atol=1e-5, rtol=1e-4)
    sharing = sum(sharing_categories(ungated, c, reading=DOCUMENTS, progress=False) for c in shards)
    whole = sharing_categories(ungated, corpus, reading=DOCUMENTS, progress=False)
    assert same(sharing.counts, whole.counts)
    assert same(sharing.lowest, whole.lowest)
    assert same(sharing.n_inputs, whole.n_inputs)
    torch.testing.assert_close(sharing.overlap_sum, whole.overlap_sum)


def test_evidence_of_another_reading_is_not_added(nouns):
    for name in ("ActivationStats", "TextActivations", "Impact", "Relevance", "Sharing"):
        with pytest.raises(ValueError, match=f"reading must be the same in all {name} that are added"):
            nouns[name] + replace(nouns[name], reading=replace(DOCUMENTS, bos="row"))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("NeuronSet/1", "was written by an earlier mi_multilingual .*how its text was read; make it again"),
        ("ActivationStats/2", "was written by an earlier mi_multilingual .*where neurons were active; make it again"),
        ("os.system/2", "must hold one of ActivationStats, .* got os.system/2"),
        ("", "got no record of this package"),
    ],
)
def test_other_files_are_refused_in_words(tmp_path, schema, message):
    save_file({"masks": torch.zeros(1)}, tmp_path / "f", {"schema": schema, "header": "{}"} if schema else None)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "f")


def test_another_noun_or_other_fields_are_refused(nouns, tmp_path):
    save(nouns["NeuronScores"], tmp_path / "s")
    with pytest.raises(ValueError, match="must hold NeuronSet, got NeuronScores/2"):
        load(tmp_path / "s", NeuronSet)
    header = json.dumps({"groups": ["a"], "method": "m", "unheard": 1})
    save_file(
        {"masks": torch.zeros(1, 1, 1, dtype=torch.bool)}, tmp_path / "f", {"schema": "NeuronSet/2", "header": header}
    )
    with pytest.raises(ValueError, match="holds a NeuronSet with other fields"):
        load(tmp_path / "f")
    with pytest.raises(ValueError, match="noun must be one of"):
        save({"a": 1}, tmp_path / "d")


def test_at_most_so_many_tokens_and_as_many_of_every_language(ungated, corpus):
    def counted(**options):
        reading = Reading(window=8, bos="none", **options)
        return {rows.language: rows.n_tokens for rows in language_rows(ungated, corpus, reading)}

    everything = counted(layout="documents")
    assert len(set(everything.values())) > 1, "languages of different length"
    shortest = min(everything.values())
    assert set(counted(layout="documents", equal_tokens=True).values()) == {shortest}
    assert set(counted(equal_tokens=True).values()) == {shortest // 8 * 8}
    assert set(counted(layout="documents", max_tokens=11).values()) == {11}
    assert set(counted(max_tokens=20).values()) == {16}
    texts = record_texts(ungated, corpus, reading=replace(DOCUMENTS, max_tokens=11), progress=False)["mean"]
    assert set(texts.document.tolist()) == {0}, "documents behind the limit are left out"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be a number of tokens from 1, or None, got 0"),
        ({"max_tokens": -1}, "max_tokens must be a number of tokens from 1, or None, got -1"),
        ({"layout": "lines"}, "layout must be one of stream, documents, got 'lines'"),
        ({"bos": "auto"}, "bos must be one of tokenizer, none, row, count, got 'auto'"),
    ],
)
def test_a_reading_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Reading(**options)


def test_bad_sizes_are_refused_in_words(ungated, corpus):
    for batch_size in (0, -3, "all"):
        with pytest.raises(ValueError, match=f"batch_size must be .* got {batch_size!r}"):
            record(ungated, corpus, batch_size=batch_size, progress=False)
    with pytest.raises(ValueError, match="window must be at most 32, the model's context, got 33"):
        record(ungated, corpus, reading=Reading(window=33), progress=False)


def test_damaged_archives_and_missing_folders_are_told(tmp_path):
    (tmp_path / "en.txt.gz").write_bytes(b"no gzip at all\n")
    with pytest.raises(ValueError, match=r"en.txt.gz must be a whole gzip file"):
        load_corpus(tmp_path)
    with pytest.raises(ValueError, match="got './nowhere', which is not there"):
        load_corpus("./nowhere")
    with pytest.raises(ValueError, match="there is no folder 'nowhere' either"):
        load_corpus("nowhere")


def test_a_model_is_the_same_in_bfloat16_and_another_with_another_gate(tmp_path):
    from mi_multilingual.models.hooked import fingerprint

    checkpoints.checkpoint("llama", tmp_path)
    model = load_model(tmp_path, device="cpu")
    before = fingerprint(model)
    assert fingerprint(load_model(tmp_path, device="cpu", dtype=torch.bfloat16)) == before
    with torch.no_grad():
        model.blocks[0].mlp.W_gate[0, 0] += 1
    assert fingerprint(model) != before


def test_a_device_that_is_not_there_is_told(tmp_path):
    checkpoints.checkpoint("opt", tmp_path)
    with pytest.raises(ValueError, match="device must be one that torch can use here, got 'cuda:9'"):
        load_model(tmp_path, device="cuda:9")


def test_mixtures_of_experts_are_refused_by_name(tmp_path):
    import transformers

    config = transformers.MixtralConfig(**checkpoints.GATED, num_key_value_heads=1, num_local_experts=4)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match="got .*MixtralForCausalLM.* a mixture of 4 experts per layer"):
        load_model(model, tokenizer=checkpoints.tokenizer(tmp_path))
