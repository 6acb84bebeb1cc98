"""Facts edited in context and by updates of rank one: against formulas, and on a model whose facts are known."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import OPTConfig, OPTForCausalLM

import checkpoints
import oracles
from claims import editing as claims
from claims.claim import verdict
from mi_multilingual import (
    Corpus,
    EditRecord,
    Reading,
    edit,
    editing_effects,
    editing_neuron_effects,
    editing_neurons,
    editing_prompts,
    editing_study,
    editing_transfer,
    in_context,
    load_edits,
    load_fact_edits,
    load_model,
    load_mzsre,
    plots,
    rank_one,
    rank_one_edits,
    record_keys,
    token_rows,
)
from mi_multilingual.evaluation.intervals import mean_interval
from mi_multilingual.models.native import native_of
from mi_multilingual.report.sections.editing import editing_findings
from mi_multilingual.studies.editing import TABLES, _other, _records
from mi_multilingual.studies.given import Given
from mi_multilingual.studies.planted import _word_tokenizer
from mi_multilingual.studies.rank_one import Named, _token_at
from mi_multilingual.studies.table import STUDIES, study_settings

TEXT = Reading(layout="documents", window=16)
ENGLISH = EditRecord(
    "dog", "en", "dog", "The dog sleeps", "The old dog", " tea.", ((" A small boat", " crossed"),), answer=" under"
)
FRENCH = EditRecord("dog", "fr", "chien", "Le chien", "Le vieil chien", " du thé", (("Un petit", " bateau"),))
RECORDS = [
    ENGLISH,
    FRENCH,
    EditRecord("boat", "en", "small boat", "A small boat", "Small boat", " sleeps", (("We drink", " tea"),)),
    EditRecord("boat", "fr", "bateau", "Un petit bateau", "Le bateau", " dort", (("Nous", " buvons"),)),
]


@pytest.fixture(scope="module", params=["opt", "llama-grouped", "gpt2 on a bridge"])
def any_model(request, tmp_path_factory):
    kind, _, bridge = request.param.partition(" on a ")
    folder = checkpoints.checkpoint(kind, tmp_path_factory.mktemp("tiny"))
    return load_model(folder, device="cpu", backend=bridge or "auto")


def parameters_of(model):
    """Every parameter of the hooked model, and of the transformers model behind it."""
    both = (model, native_of(model).hf_model)
    return {f"{i} {name}": p for i, one in enumerate(both) for name, p in one.named_parameters()}


def copies(model):
    return {name: p.detach().clone() for name, p in parameters_of(model).items()}


def same(model, before):
    return all(torch.equal(p, before[name]) for name, p in parameters_of(model).items())


def projection(model, layer):
    return checkpoints.out_projection(list(checkpoints.mlps(native_of(model).hf_model))[layer])


def watched(model, ids, layer):
    """What the output projection reads and writes at every token, by the transformers model itself."""
    seen = {}

    def watch(module, given, out):
        seen["key"], seen["out"] = (x.detach().reshape(len(ids), -1) for x in (given[0], out))

    with watching(model, layer, watch), torch.no_grad():
        logits = transformers_model(model)(input_ids=torch.tensor([ids])).logits[0]
    return seen["key"].double(), seen["out"].double(), logits


class watching:
    """A forward hook on the output projection, whatever a bridge has put around it."""

    def __init__(self, model, layer, hook):
        module = projection(model, layer)
        self.module, self.hook = getattr(module, "original_component", module), hook

    def __enter__(self):
        self.handle = self.module.register_forward_hook(self.hook)

    def __exit__(self, *error):
        self.handle.remove()


def transformers_model(model):
    return native_of(model).hf_model


def ids_of(model, text):
    return model.tokenizer(text)["input_ids"]


def rows_of(model, corpus, language):
    """The ids of every row of text, and which of them count."""
    rows = token_rows(corpus, language, model.tokenizer, replace(TEXT, window=16))
    for batch in rows.batches(1):
        n = int(batch.valid[0].nonzero().max()) + 1
        yield batch.tokens[0, :n].tolist(), batch.valid[0, :n]


def place_of(model, text, end):
    """The token at which the subject ends, special tokens in front counted."""
    ids = ids_of(model, text)
    front = len(ids) - len(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    pieces = [model.tokenizer.decode(ids[front : i + 1]) for i in range(front, len(ids))]
    return front + oracles.last_token_of(text, end, pieces)


def test_the_update_is_that_of_the_formulas(any_model, corpus):
    model, layer = any_model, 0
    keys = record_keys(model, corpus, layer=layer, n_openings=2, reading=TEXT, progress=False)
    made = rank_one(model, ENGLISH, keys)
    rows = [row for k in corpus.languages for row in rows_of(model, corpus, k)]
    elsewhere = [watched(model, ids, layer)[0][counted] for ids, counted in rows]
    texts = [ENGLISH.prompt, *(f"{' '.join(t.split()[:5])}. {ENGLISH.prompt}" for t in corpus.documents["en"][:2])]
    ends = [text.rfind("dog") + 3 for text in texts]
    places = [place_of(model, text, end) for text, end in zip(texts, ends, strict=True)]
    seen = [watched(model, ids_of(model, text), layer) for text in texts]
    at_subject = [key[place].tolist() for (key, _, _), place in zip(seen, places, strict=True)]
    direction = oracles.edit_direction(torch.cat(elsewhere).tolist(), at_subject)
    written = seen[0][1][places[0]].numpy()
    expected = oracles.edit_update(direction, at_subject[0], written, made.value.numpy())
    np.testing.assert_allclose(made.update().numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert torch.linalg.matrix_rank(made.update()) == 1
    np.testing.assert_allclose(made.written.numpy(), written, atol=1e-4)
    with edit(model, made):
        assert watched(model, ids_of(model, ENGLISH.prompt), layer)[1][places[0]].numpy() == pytest.approx(
            made.value.numpy(), abs=1e-4
        )


def test_the_value_is_where_adam_ends(any_model, corpus):
    model, layer = any_model, 0
    keys = record_keys(model, corpus, layer=layer, n_openings=1, reading=TEXT, progress=False)
    made = rank_one(model, ENGLISH, keys)
    texts = [ENGLISH.prompt, f"{' '.join(corpus.documents['en'][0].split()[:5])}. {ENGLISH.prompt}"]
    written = made.written.numpy()
    before = []

    def loss(x):
        shift = torch.tensor(x, requires_grad=True)
        missed, counted = 0.0, 0
        for text in texts:
            alone, whole = ids_of(model, text), ids_of(model, text + ENGLISH.target)
            log_p = shifted_log_p(model, whole, layer, place_of(model, text, text.rfind("dog") + 3), shift)
            for i in range(len(alone), len(whole)):
                missed, counted = missed - log_p[i - 1, whole[i]], counted + 1
        after = shifted_log_p(model, ids_of(model, "dog is a"), layer, place_of(model, "dog is a", 3), shift)[-1]
        before.append(after.detach())
        far = (after.exp() * (after - before[0])).sum()
        size = np.linalg.norm(written)
        total = missed / counted + 0.0625 * far + (0.5 * shift.norm() / size**2 if x.any() else 0.0)
        return total.item(), torch.autograd.grad(total, shift)[0].numpy()

    expected = oracles.descended(loss, len(written), 4 * np.linalg.norm(written))
    np.testing.assert_allclose((made.value - made.written).numpy(), expected, rtol=2e-2, atol=2e-3)
    assert np.abs(expected).max() > 0.01


def shifted_log_p(model, ids, layer, place, shift):
    """Log-probabilities by transformers, with a vector added to what the MLP writes at one token."""

    def add(module, given, out):
        rows = out.reshape(len(ids), -1)
        return torch.cat([rows[:place], rows[place : place + 1] + shift.float(), rows[place + 1 :]]).view_as(out)

    with watching(model, layer, add):
        return transformers_model(model)(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def test_all_weights_are_restored_bit_for_bit(any_model, corpus):
    model, before = any_model, copies(any_model)
    keys = record_keys(model, corpus, layer=0, n_openings=1, reading=TEXT, progress=False)
    made = rank_one_edits(model, RECORDS, keys, edited_in=["en"], progress=False)
    assert same(model, before)
    with edit(model, made["dog", "en"]):
        changed = [name for name, p in parameters_of(model).items() if not torch.equal(p, before[name])]
        assert len({parameters_of(model)[name].data_ptr() for name in changed}) == 1
        with edit(model, made["boat", "en"]):
            pass
        assert not same(model, before)
    assert same(model, before)
    with pytest.raises(RuntimeError, match="stop"), edit(model, made["dog", "en"]):
        raise RuntimeError("stop")
    assert same(model, before)


def test_the_subject_ends_where_its_text_is_whole(demo_model):
    tokenizer = demo_model.tokenizer
    for record in load_fact_edits()[:300:7]:
        end = record.prompt.rfind(record.subject) + len(record.subject)
        ids = tokenizer(record.prompt)["input_ids"]
        pieces = [tokenizer.decode(ids[1 : i + 1]) for i in range(1, len(ids))]
        expected = 1 + oracles.last_token_of(record.prompt, end, pieces)
        assert _token_at(demo_model, Named(record.prompt, end), "tokenizer") == expected


WORDS = [f"w{i}" for i in range(20)]


@pytest.fixture(scope="module")
def memory():
    """A model whose first MLP has a neuron for each word, which fires at that word alone and writes what follows."""
    tokenizer = _word_tokenizer(WORDS)
    n, width = len(tokenizer), 64
    ends = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0}
    sizes = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": n, "num_attention_heads": 2}
    hf_model = OPTForCausalLM(OPTConfig(vocab_size=n, num_hidden_layers=2, max_position_embeddings=32, **sizes, **ends))
    hf_model.lm_head.weight = torch.nn.Parameter(torch.zeros(n, width))
    start = torch.cat([torch.ones(width, 1), torch.randn(width, 2 * n, generator=torch.Generator().manual_seed(0))], 1)
    apart = torch.linalg.qr(start)[0].T[1:]  # directions that a layer norm leaves alone
    said = torch.tensor([0, 1, *(2 + (7 * i + 3) % 20 for i in range(20))])
    with torch.no_grad():
        for name, p in hf_model.named_parameters():
            p.fill_(1.0 if "norm" in name and "weight" in name else 0.0)
        hf_model.model.decoder.embed_tokens.weight.copy_(8 * apart[:n])
        hf_model.lm_head.weight.copy_(4 * apart[n:])
        mlp = hf_model.model.decoder.layers[0]
        mlp.fc1.weight.copy_(apart[:n])
        mlp.fc2.weight.copy_((apart[n:][said]).T)
    hf_model.config.tie_word_embeddings = False
    return load_model(hf_model.eval(), tokenizer=tokenizer, device="cpu")


def memorised(i):
    """What follows a word."""
    return f" {WORDS[(7 * i + 3) % 20]}"


def word_records():
    """What follows five words becomes another word; for two of them, both languages name the same word."""
    records = []
    for i in range(5):
        for language, front in (("en", "w15"), ("fr", "w16 w17")):
            named = i if language == "en" or i < 2 else i + 5
            prompts = (f"{front} {WORDS[named]}", f"w18 w19 {front} {WORDS[named]}")
            local = ((f"w15 {WORDS[i + 10]}", memorised(i + 10)),)
            target = f" {WORDS[i + 13]}"
            records.append(EditRecord(f"r{i}", language, WORDS[named], *prompts, target, local, memorised(named)))
    return records


def test_an_edited_fact_is_followed_where_the_same_word_names_it(memory):
    records = word_records()
    texts = tuple(" ".join(WORDS[i : i + 9]) for i in range(0, 12, 2))
    corpus = Corpus(dict.fromkeys(("en", "fr"), texts), "words")
    keys = record_keys(memory, corpus, layer=0, n_openings=0, reading=TEXT, progress=False)
    made = rank_one_edits(memory, records, keys, edited_in=["en"], progress=False)
    answers = editing_study(memory, records, made, edited_in=["en"], seeds=[0, 3], progress=False)
    rows = answers[(answers.editor == "rank one") & (answers.condition == "chosen")].set_index(["asked", "id"])
    assert answers.known.all()
    assert answers.known_asked.all()
    assert rows.loc["en", ["success", "generality"]].all(axis=None)
    assert rows.locality.eq(1).all()
    assert rows.loc["fr"].success.tolist() == [True, True, False, False, False]
    assert rows.loc["fr"].fired.to_numpy() == pytest.approx([1, 1, 0, 0, 0], abs=1e-3)
    random = answers[(answers.editor == "rank one") & (answers.condition == "random")]
    assert not random.success.any()
    intact = answers[answers.condition == "intact"]
    assert (len(intact), intact.success.any(), intact.locality.min(), intact.gain.abs().max()) == (10, False, 1, 0)
    for (name, _), update in made.items():
        lengths = update.update().norm(dim=1).tolist()
        assert lengths[2 + int(name[1:])] == pytest.approx(np.linalg.norm(lengths), rel=1e-3)
    transfer = editing_transfer(answers).set_index(["editor", "scope", "measure"]).loc["rank one"]
    assert transfer.loc[("own language", "success"), ["value", "random", "beyond_low"]].tolist() == [1, 0, 1]
    assert transfer.loc[("other languages", "success"), "value"] == pytest.approx(0.4)


def greedy(model, prompt, answer):
    """The likeliest token where the answer has one, the answer's own tokens, and their log-likelihood; in one pass."""
    alone, whole = ids_of(model, prompt), ids_of(model, prompt + answer)
    first = next(i for i in range(len(whole)) if i >= len(alone) or alone[i] != whole[i])
    with torch.no_grad():
        log_p = transformers_model(model)(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
    likeliest = log_p[first - 1 : -1].argmax(-1).tolist()
    return likeliest, whole[first:], sum(log_p[i - 1, whole[i]].item() for i in range(first, len(whole)))


def as_the_model_says(model, records):
    """The records with true answers, and targets some of which the model says already."""
    found = []
    for i, record in enumerate(records):
        with torch.no_grad():
            said = model.tokenizer.decode(model(torch.tensor([ids_of(model, record.prompt)]))[0, -1].argmax())
        usable = said.strip() and greedy(model, record.prompt, said)[0] == greedy(model, record.prompt, said)[1]
        found.append(replace(record, answer=said if usable and i % 2 else " thé"))
    return found


@pytest.fixture(scope="module", params=["gpt-neox", "llama-grouped"], ids=["ungated", "gated"])
def roomy(request, tmp_path_factory):
    """A tiny model that takes the words of an edit in context."""
    return load_model(checkpoints.chatting(request.param, tmp_path_factory.mktemp("tiny")), device="cpu")


def test_every_row_is_what_the_edited_model_says(roomy, corpus):
    model, weights = roomy, copies(roomy)
    records = as_the_model_says(model, RECORDS)
    keys = record_keys(model, corpus, layer=0, n_openings=1, reading=TEXT, progress=False)
    made = rank_one_edits(model, records, keys, progress=False)
    answers = editing_study(model, records, made, seeds=[0], progress=False)
    of = {(record.id, record.language): record for record in records}
    other = {"dog": "boat", "boat": "dog"}
    assert len(answers) == 4 + 2 * 2 * 2 * 2 * 2
    for row in answers[answers.condition != "intact"].itertuples():
        record = of[row.id, row.asked]
        new = (row.id if row.condition == "chosen" else other[row.id], row.edited)
        front = in_context(of[new], "") if row.editor == "in context" else ""
        pairs = [(record.prompt, record.target), (record.rephrase, record.target), *record.locality]
        before = [greedy(model, prompt, answer) for prompt, answer in pairs]
        if front:
            after = [greedy(model, front + prompt, answer) for prompt, answer in pairs]
            assert np.isnan(row.fired)
        else:
            with edit(model, made[new]):
                after = [greedy(model, prompt, answer) for prompt, answer in pairs]
            key = watched(model, ids_of(model, record.prompt), 0)[0][
                place_of(model, record.prompt, record.prompt.rfind(record.subject) + len(record.subject))
            ]
            own = made[new]
            assert row.fired == pytest.approx(float(key @ own.direction / (own.key @ own.direction)), abs=1e-3)
        assert (row.success, row.generality) == tuple(said == told for said, told, _ in after[:2])
        assert row.locality == np.mean([a[0] == b[0] for a, b in zip(before[2:], after[2:], strict=True)])
        assert row.gain == pytest.approx(after[0][2] - before[0][2], abs=1e-3)
        for column, language in (("known", row.edited), ("known_asked", row.asked)):
            said, told, _ = greedy(model, of[row.id, language].prompt, of[row.id, language].answer)
            assert getattr(row, column) == (said == told)
    assert same(model, weights)
    assert answers.known.nunique() == 2


def test_demonstrations_stand_before_the_new_fact():
    text = in_context(ENGLISH, FRENCH.prompt, [(RECORDS[2], RECORDS[3])])
    assert text == (
        "New Fact: A small boat sleeps\nPrompt: Un petit bateau dort\n\nNew Fact: The dog sleeps tea.\nPrompt: Le chien"
    )
    items = {(i.id, i.language): i for i in editing_prompts(RECORDS, shots=1)}
    assert items["dog/en to all", "fr"].prompt == text
    assert items["dog/en to all", "fr"].answer == "du thé"
    assert items["dog/all to en", "fr"].prompt.endswith("New Fact: Le chien du thé\nPrompt: The dog sleeps")
    assert items["dog/all to en", "fr"].answer == "tea."
    assert {i.task for i in items.values()} == {"editing en to all", "editing all to en"}
    assert len(items) == 8
    with pytest.raises(ValueError, match="shots must be from 0 to 1"):
        editing_prompts(RECORDS, shots=2)
    with pytest.raises(ValueError, match="'ja'"):
        editing_prompts(RECORDS, pivot="ja")


@settings(max_examples=2)
@given(st.sampled_from(["capital", "language", "continent"]), st.integers(0, 10))
def test_the_facts_of_the_demo_become_those_of_other_countries(relation, seed):
    records = load_fact_edits(relation=relation, languages=["en", "ja", "tr"], seed=seed)
    assert len(records) == 120
    answers = {(r.id, r.language): r.answer for r in records}
    for record in records:
        assert record.subject in record.prompt
        assert record.target != record.answer
        assert record.target in answers.values()
        assert len(set(record.locality)) == 2
        assert record.prompt not in [prompt for prompt, _ in record.locality]
        parallel = [r for r in records if r.id == record.id]
        donors = [{i for (i, k), a in answers.items() if k == r.language and a == r.target} for r in parallel]
        assert set.intersection(*donors)
    assert records == load_fact_edits(relation=relation, languages=["en", "ja", "tr"], seed=seed)
    by_id = list({r.id: {q.language: q for q in records if q.id == r.id} for r in records}.values())
    for i in (0, 7, 39):
        assert all(_other(by_id, i, seed)[k].target != record.target for k, record in by_id[i].items())


def test_records_are_read_from_files(tmp_path):
    rows = [{**vars(record), "locality": [list(pair) for pair in record.locality]} for record in RECORDS]
    del rows[1]["answer"]
    own = tmp_path / "records.jsonl"
    own.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert load_edits(own) == RECORDS
    fields = {
        "subject": "dog",
        "src": "The dog ",
        "rephrase": "A dog",
        "alt": "barks",
        "loc": "A cat",
        "loc_ans": "mews",
    }
    objects = [{"en": fields, "zh": {**fields, "src": "狗"}}, {"en": {**fields, "alt": "runs"}, "zh": fields}]
    for text in (json.dumps(objects), "\n".join(map(json.dumps, objects))):
        own.write_text(text, encoding="utf-8")
        found = load_mzsre(own)
        assert [(r.id, r.language, r.target) for r in found] == [
            ("mzsre/0", "en", " barks"),
            ("mzsre/0", "zh", "barks"),
            ("mzsre/1", "en", " runs"),
            ("mzsre/1", "zh", "barks"),
        ]
        assert found[0] == EditRecord("mzsre/0", "en", "dog", "The dog", "A dog", " barks", (("A cat", " mews"),))
        assert [r.language for r in load_mzsre(own, languages=["zh"])] == ["zh", "zh"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one record"),
        ("{", "line 1: not JSON"),
        ('[{"en": 1}', "line 1: not JSON"),
        ('{"en": {"subject": "dog"}}', "line 1, 'en': no 'src'"),
        ("[1]", "object 0: must be an object"),
        ('{"en": {}}\n[]\n{}', "line 1, 'en': no 'subject'"),
    ],
)
def test_damaged_files_are_told_with_their_place(tmp_path, text, message):
    file = tmp_path / "records.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_mzsre(file)


def test_damaged_records_are_refused(tmp_path):
    file = tmp_path / "records.jsonl"
    row = {**vars(ENGLISH), "locality": ["a", "b"]}
    file.write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1: locality must be a list of pairs"):
        load_edits(file)
    file.write_text(json.dumps({**row, "locality": []}), encoding="utf-8")
    with pytest.raises(ValueError, match="at least one"):
        load_edits(file)
    with pytest.raises(ValueError, match="must be one that is there"):
        load_edits(tmp_path / "nothing")
    with pytest.raises(ValueError, match="target of record 'dog'"):
        replace(ENGLISH, target=" ")


def test_bad_input_is_refused_before_anything_runs(ungated, corpus, monkeypatch):
    keys = record_keys(ungated, corpus, layer=0, n_openings=1, reading=TEXT, progress=False)
    made = rank_one_edits(ungated, RECORDS, keys, edited_in=["en"], progress=False)
    monkeypatch.setattr("mi_multilingual.studies.editing.teacher_forced", None)
    for arguments, message in (
        ({"records": []}, "at least one"),
        ({"records": RECORDS[:3]}, "not parallel"),
        ({"edited_in": ["ja"]}, "'ja'"),
        ({"seeds": []}, "at least one number"),
        ({"updates": made}, "none for \\('dog', 'fr'\\)"),
        ({"records": RECORDS[:2]}, "give more records"),
        ({"shots": 2}, "shots must be from 0 to 1"),
        ({"records": [replace(r, prompt=r.prompt * 20) for r in RECORDS]}, "must fit the model"),
    ):
        with pytest.raises(ValueError, match=message):
            editing_study(ungated, **{"records": RECORDS, "progress": False, **arguments})
    with pytest.raises(ValueError, match="layer must be from 0 to 1, got 2"):
        record_keys(ungated, corpus, layer=2)
    with pytest.raises(ValueError, match="the subject must stand in the prompt, got 'cat'"):
        rank_one_edits(ungated, [replace(ENGLISH, subject="cat")], keys)
    with (
        pytest.raises(ValueError, match="must be of the model's own layers"),
        edit(ungated, replace(made["dog", "en"], layer=7)),
    ):
        pass


def test_an_edit_needs_a_key(ungated, corpus):
    keys = record_keys(ungated, corpus, layer=0, n_openings=1, reading=TEXT, progress=False)
    before = copies(ungated)
    try:
        with torch.no_grad():
            for name in ("W_in", "b_in"):
                getattr(ungated.blocks[0].mlp, name).zero_()
        with pytest.raises(ValueError, match="some neuron must be active where 'dog' ends"):
            rank_one(ungated, ENGLISH, keys)
    finally:
        with torch.no_grad():
            for name, p in parameters_of(ungated).items():
                p.copy_(before[name])


def made_up(n=6, *, seed=0, editors=("in context", "rank one")):
    """Answers in three languages with noise, one of them unknown."""
    random, rows = np.random.default_rng(seed), []
    for i in range(n):
        for editor in editors:
            for edited in ("en", "fr"):
                for asked in ("en", "fr", "ja"):
                    for condition, draw in (("chosen", -1), ("random", 0), ("random", 1)):
                        share = 0.9 if condition == "chosen" and edited == asked else 0.3
                        measures = {m: bool(random.random() < share) for m in ("success", "generality")}
                        labels = {"id": f"r{i}", "edited": edited, "asked": asked, "editor": editor}
                        known = not (i == 0 and asked == "fr")
                        row = {
                            "condition": condition,
                            "seed": draw,
                            "known": known,
                            "locality": random.choice([0.5, 1.0]),
                        }
                        rows.append(
                            {
                                **labels,
                                **row,
                                **measures,
                                "gain": 2.0 * (condition == "chosen") + row["locality"],
                                "fired": np.nan,
                            }
                        )
    return pd.DataFrame(rows)


@settings(max_examples=2)
@given(st.integers(0, 99), st.integers(2, 6))
def test_effects_are_means_of_known_facts_over_records(seed, n):
    answers = made_up(n, seed=seed)
    for row in editing_effects(answers).itertuples():
        mine = [
            r for r in answers.itertuples()
            if r.known and (r.editor, r.edited, r.asked) == (row.editor, row.edited, row.asked)
        ]  # fmt: skip
        ids = sorted({r.id for r in mine})
        value, random = (
            [np.mean([getattr(r, row.measure) for r in mine if r.id == i and r.condition == c]) for i in ids]
            for c in ("chosen", "random")
        )
        assert row.n_records == len(ids) == n - (row.asked == "fr")
        assert (row.value, row.random) == pytest.approx((np.mean(value), np.mean(random)))
        assert (row.low, row.high) == pytest.approx(oracles.wilson(sum(value), len(ids)))
        assert row.beyond == pytest.approx(np.mean(value) - np.mean(random))
        expected = mean_interval(np.array(value) - np.array(random))
        assert (row.beyond_low, row.beyond_high) == pytest.approx(expected)
    for row in editing_transfer(answers).itertuples():
        own = row.scope == "own language"
        mine = [
            r for r in answers.itertuples()
            if r.known and r.editor == row.editor and r.condition == "chosen" and (r.edited == r.asked) == own
        ]  # fmt: skip
        means = [np.mean([getattr(r, row.measure) for r in mine if r.id == i]) for i in sorted({r.id for r in mine})]
        assert row.value == pytest.approx(np.mean(means))


def test_effects_need_known_facts_and_controls():
    answers = made_up(2)
    for part in (answers[answers.condition != "random"], answers.assign(known=False)):
        with pytest.raises(ValueError, match="must hold edits of known facts and their controls"):
            editing_effects(part)


def test_neurons_carry_an_update_by_its_squares(model, corpus):
    keys = record_keys(model, corpus, layer=0, n_openings=1, reading=TEXT, progress=False)
    made = rank_one_edits(model, RECORDS, keys, edited_in=["en"], progress=False)
    found = editing_neurons(model, RECORDS, made).set_index(["id", "edited", "token", "type"])
    assert len(found) == 2 * 2 * 4
    for pair in (RECORDS[:2], RECORDS[2:]):
        update = made[pair[0].id, "en"].update()
        for token in ("last", "subject"):
            active = []
            for record in pair:
                ids = ids_of(model, record.prompt)
                end = record.prompt.rfind(record.subject) + len(record.subject)
                place = place_of(model, record.prompt, end) if token == "subject" else -1
                active.append((watched(model, ids, 0)[0][place] > 0).tolist())
            kinds = np.array([oracles.neuron_type(list(both)) for both in zip(*active, strict=True)])
            for kind in ("all-shared", "specific", "non-activated"):
                row = found.loc[pair[0].id, "en", token, kind]
                carried = update[torch.from_numpy(kinds == kind)].square().sum() / update.square().sum()
                assert (row.share, row.carried) == pytest.approx((np.mean(kinds == kind), float(carried)), abs=1e-6)
    effects = editing_neuron_effects(found.reset_index()).set_index(["token", "type"])
    assert effects.groupby("token")[["carried", "share"]].sum().to_numpy() == pytest.approx(1.0)
    assert effects.beyond.to_numpy() == pytest.approx((effects.carried - effects.share).to_numpy())


def test_claims_are_measured_against_their_controls():
    answers = made_up(60, seed=1)
    neurons = pd.DataFrame(
        {
            "id": ["a", "a", "b", "b"],
            "token": ["last", "subject"] * 2,
            "type": "all-shared",
            "carried": [0.5, 0, 0.7, 0],
        }
    ).assign(share=0.1, edited="en")
    tables = {"editing": answers, "editing_neurons": neurons}
    own, aimed, other, lost, context, shared = (claim.measure(tables) for claim in claims.CLAIMS)
    known = answers[answers.known & (answers.editor == "rank one")]
    mean = known.assign(own=known.edited == known.asked).groupby(["condition", "own", "id"]).success.mean()
    mean = mean.groupby(["condition", "own"]).mean()
    assert own.value == pytest.approx(mean["chosen", True] - mean["random", True], abs=0.02)
    assert lost.value == pytest.approx(mean["chosen", False] - mean["chosen", True], abs=0.02)
    assert other.value == pytest.approx(2.0, abs=0.1)
    assert shared.value == pytest.approx(0.5)
    assert aimed.value == pytest.approx(0.9 - 0.25, abs=0.1)
    told = [verdict(claim, claim.measure(tables)) for claim in claims.CLAIMS]
    assert told[:2] == ["holds", "holds"]
    assert (told[2], told[3], told[5]) == ("holds", "holds", "holds")
    assert all(effect.low <= effect.value <= effect.high for effect in (own, aimed, other, lost, context, shared))


def test_the_whole_study_on_the_demo(demo_model):
    from mi_multilingual import load_corpus

    corpus = load_corpus("demo", split="identify", languages=["fr", "en"], max_documents=5)
    asked = study_settings("editing", {"n_records": 2, "n_edited": 1, "n_documents": 5, "depth": 0.1})
    given = Given(demo_model, corpus, corpus, Reading(layout="documents"), asked, seeds=(0,), progress=False)
    tables = STUDIES["editing"].run(given)
    assert tuple(tables) == STUDIES["editing"].tables == TABLES
    assert set(tables["editing"].edited) == {"", "fr"}
    assert tables["editing"].known.all()
    for figure in (
        plots.editing_matrix(tables["editing_effects"]),
        plots.editing_transfer(tables["editing_transfer"]),
        plots.editing_neurons(tables["editing_neuron_effects"]),
    ):
        assert figure.data
    assert len(editing_findings(tables["editing_transfer"])) == 4
    with pytest.raises(ValueError, match="editor must be one of in context, rank one"):
        plots.editing_matrix(tables["editing_effects"], editor="rank two")
    for wrong in ({"records": "jsonl"}, {"file": "x"}):
        with pytest.raises(ValueError, match="file must be given where records are not the demo's"):
            STUDIES["editing"].run(replace(given, settings=study_settings("editing", wrong)))


def test_records_of_a_file_are_asked_in_the_languages_of_the_text(tmp_path, ungated):
    file = tmp_path / "records.jsonl"
    rows = [{**vars(record), "locality": record.locality} for record in [*RECORDS, replace(ENGLISH, language="de")]]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    asked = study_settings("editing", {"records": "jsonl", "file": str(file)})
    text = Corpus(dict.fromkeys(("ja", "fr", "en"), ("text",)), "test")
    given = Given(ungated, text, text, TEXT, asked)
    assert _records(given) == [RECORDS[1], RECORDS[3], RECORDS[0], RECORDS[2]]
    with pytest.raises(ValueError, match="at least two of the text's languages, fr, ja"):
        _records(replace(given, identify=text.take(["fr", "ja"])))
