import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import checkpoints
import oracles
from mi_multilingual import (
    Item,
    NeuronSet,
    ablate,
    accuracy_by_language,
    choice_accuracy,
    generate,
    in_every_language,
    last_number,
    load_facts,
    load_model,
    parallel_items,
    written_accuracy,
)
from mi_multilingual.corpora import WITHOUT_SPACES
from mi_multilingual.demo.job import fact_table
from mi_multilingual.evaluation.likelihood import continuations, forward_rows, log_likelihoods
from mi_multilingual.evaluation.tasks import choice_log_likelihoods
from mi_multilingual.tokens import TOKENS_PER_BATCH


def test_choices_in_a_batch_have_the_likelihood_of_each_alone(model):
    for prompt, choices in {
        "The dog": (" sleeps", " sleeps under the tree.", "s"),
        "犬が": ("川を渡った。", "古い木"),
    }.items():
        together = choice_log_likelihoods(model, prompt, choices, bos="row")
        torch.testing.assert_close(
            together,
            torch.tensor([oracles.mean_log_likelihood(model, prompt, c, "none") for c in choices]).double(),
            atol=1e-4,
            rtol=1e-4,
        )


def test_accuracy_counts_the_likeliest_choice(model):
    choices = (" sleeps", " under", " river")
    best = int(choice_log_likelihoods(model, "The dog", choices).argmax())
    items = [Item(str(i), "en", "test", "The dog", choices, i) for i in range(3)]
    table = choice_accuracy(model, items, progress=False)
    assert table.correct.tolist() == [i == best for i in range(3)]
    assert table.chosen.tolist() == [best] * 3


words = st.text(st.sampled_from("ab é犬\n"), min_size=1, max_size=4)
questions = st.lists(
    st.tuples(st.text(st.sampled_from("ab é犬\n"), max_size=6), st.lists(words, min_size=1, max_size=5))
)


@settings(max_examples=15)
@given(asked=questions)
def test_many_questions_in_a_batch_have_the_likelihoods_of_each_choice_alone(model, asked):
    """Empty prompts, repeated choices, choices that begin one another or join the prompt's last token."""
    rows = [continuations(model, prompt, choices, bos="row") for prompt, choices in asked]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOKENS_PER_BATCH, "choices", 20)
        together = log_likelihoods(model, [c for row in rows for c in row])
    alone = [oracles.mean_log_likelihood(model, prompt, c, "none") for prompt, choices in asked for c in choices]
    torch.testing.assert_close(together, torch.tensor(alone, dtype=torch.float64), atol=1e-4, rtol=1e-4)


def test_what_begins_another_text_takes_no_row_of_its_own():
    rows, row_of = forward_rows([(1, 2), (1, 2, 3), (1, 4), (1,), (1, 2, 3), (2,)])
    assert sorted(rows) == [(1, 2, 3), (1, 4), (2,)]
    assert [rows[r] for r in row_of] == [(1, 2, 3), (1, 2, 3), (1, 4), rows[row_of[3]], (1, 2, 3), (2,)]
    assert rows[row_of[3]][:1] == (1,)


@pytest.mark.parametrize("backend", ["auto", "bridge"])
@pytest.mark.filterwarnings("ignore:.*has no HookedTransformer")
@pytest.mark.parametrize("kind", ["gpt2", "gemma", "bloom"])
def test_other_architectures_and_hooks_give_the_same_numbers_in_a_batch(kind, backend, tmp_path):
    model = load_model(checkpoints.checkpoint(kind, tmp_path), backend=backend, device="cpu")
    masks = torch.rand(1, 2, model.cfg.d_mlp, generator=torch.Generator().manual_seed(0)) < 0.5
    asked = {"The dog": [" sleeps", " sleeps under"], "犬が": ["川", "木の"]}
    with ablate(model, NeuronSet(masks, ("x",), "test")):
        found = [c for prompt, choices in asked.items() for c in continuations(model, prompt, choices, bos="row")]
        together = log_likelihoods(model, found)
        alone = [oracles.mean_log_likelihood(model, p, c, "none") for p, choices in asked.items() for c in choices]
    assert together.tolist() == pytest.approx(alone, abs=1e-4)
    assert (together - log_likelihoods(model, found)).abs().max() > 1e-3


@settings(max_examples=15)
@given(choices=st.lists(words, min_size=2, max_size=5, unique=True), how=st.sampled_from(["none", "tokens", "bytes"]))
def test_normalised_likelihoods_choose_the_best(model, choices, how):
    scores = [oracles.mean_log_likelihood(model, "The dog", c, how) for c in choices]
    item = Item("q", "en", "t", "The dog", tuple(choices), 0)
    table = choice_accuracy(model, [item], normalise=how, bos="row", progress=False)
    assert scores[table.chosen[0]] == pytest.approx(max(scores), abs=1e-5)


def test_a_choice_that_is_there_twice_is_right_both_times(model):
    item = Item("q", "en", "t", "The dog", (" sleeps", " sleeps"), 1)
    assert choice_accuracy(model, [item], progress=False).correct.tolist() == [True]


def test_written_answers_are_compared_after_extract(model):
    said = generate(model, ["The dog", "Le"], max_new_tokens=6, stop=["\n"], progress=False)
    items = [Item("0", "en", "t", "The dog", (), said[0] or "x"), Item("1", "fr", "t", "Le", (" no", "way"), 0)]
    table = written_accuracy(model, items, max_new_tokens=6, progress=False)
    assert list(table.columns) == ["id", "language", "task", "written", "found", "correct"]
    assert list(table.written) == said
    assert table.correct.tolist() == [bool(said[0].strip()), said[1].strip() == "no"]
    shouting = written_accuracy(model, items, extract=lambda text: "same", max_new_tokens=6, progress=False)
    assert shouting.correct.all()
    with pytest.raises(
        ValueError, match="extract must leave something of every answer, got nothing of 'no' of item '1'"
    ):
        written_accuracy(model, items[1:], extract=last_number, progress=False)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", "18"),
        ("She makes 9 * 2 = $18 a day.", "18"),
        ("答えは18です。", "18"),
        ("คำตอบคือ ๑๘", "18"),
        ("１，２ と １２３", "123"),
        ("1,234.50", "1234.5"),
        ("1.234,50 Euro", "1234.5"),
        ("70 000 dollars, soit 1\u202f234\u202f000", "1234000"),
        ("114,200", "114200"),
        ("3.0", "3"),
        ("0.125", "0.125"),
        ("3,5", "3.5"),
        ("10-4", "4"),
        ("x = -7.", "-7"),
        ("−7", "-7"),
        ("5 m²", "5"),
        ("100", "100"),
        ("1,2,3", "3"),
        ("none", ""),
        ("", ""),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


@given(st.integers(-(10**9), 10**9), st.sampled_from([",", ".", " ", "\u202f", "’", ""]))
def test_last_number_reads_every_way_to_group_thousands(n, separator):
    assert last_number(f"12 + 7 = {n:,}".replace(",", separator) + ".") == str(n)


def test_accuracy_has_an_interval_and_the_chance_of_a_guess():
    rows = [("a", "en", "t", True, 2), ("b", "en", "t", False, 4), ("a", "fr", "t", True, 2), ("a", "en", "u", True, 2)]
    answers = pd.DataFrame(rows, columns=["id", "language", "task", "correct", "n_choices"])
    table = accuracy_by_language(answers)
    assert list(table.columns) == ["language", "task", "n", "accuracy", "low", "high", "chance"]
    assert list(zip(table.language, table.task, table.n, table.accuracy, table.chance, strict=True)) == [
        ("en", "t", 2, 0.5, 0.375),
        ("fr", "t", 1, 1.0, 0.5),
        ("en", "u", 1, 1.0, 0.5),
    ]
    for row in table.itertuples():
        assert (row.low, row.high) == pytest.approx(oracles.wilson(row.n * row.accuracy, row.n), abs=1e-9)
    assert accuracy_by_language(answers.drop(columns="n_choices")).chance.isna().all()


def item(id, language, task="t"):
    return Item(id, language, task, "a", (" b",), 0)


def test_parallel_items_are_grouped_and_checked():
    items = [item("1", "en"), item("2", "fr"), item("1", "fr"), item("2", "en")]
    grouped = parallel_items(items)
    assert {name: list(same) for name, same in grouped.items()} == {"1": ["en", "fr"], "2": ["en", "fr"]}
    assert grouped["2"]["fr"] is items[1]
    more = [*items, item("3", "en")]
    with pytest.raises(ValueError, match="not parallel: '3' is not there in fr"):
        parallel_items(more)
    assert in_every_language(more) == items
    with pytest.raises(ValueError, match="'1' is there twice in 'en'"):
        parallel_items([*items, item("1", "en")])
    with pytest.raises(ValueError, match="no item is there in all of en, fr"):
        in_every_language([item("1", "en"), item("2", "fr")])


def test_mistakes_are_told(model):
    for match, choices, answer in (
        ("answer of item 'q' \\(en\\) must be from 0 to 1, got 2", ("b", "c"), 2),
        ("must be from 0 to 1, got -1", ("b", "c"), -1),
        ("must be a text where there are no choices, got 0", (), 0),
        ("must have some text, got an empty one", ("b", ""), 0),
        ("a text where there are no choices, got 'b' and 1 choices", ("b",), "b"),
        ("a text where there are no choices, got ' ' and 0 choices", (), " "),
    ):
        with pytest.raises(ValueError, match=match):
            Item("q", "en", "test", "a", choices, answer)
    with pytest.raises(ValueError, match=f"the model takes {checkpoints.N_CTX}|the model takes 2048"):
        choice_log_likelihoods(model, "x " * 3000, ("y",))
    with pytest.raises(ValueError, match="choice '' adds no token to prompt 'The'"):
        choice_log_likelihoods(model, "The", ("",))
    with pytest.raises(ValueError, match="normalise must be one of none, tokens, bytes, got 'words'"):
        choice_accuracy(model, [item("1", "en")], normalise="words", progress=False)
    assert choice_accuracy(model, [], progress=False).empty
    with pytest.raises(ValueError, match="every item must have choices to compare, got none for 'q'"):
        choice_accuracy(model, [Item("q", "en", "t", "a", (), "b")], progress=False)


def test_without_bos_a_choice_needs_a_prompt(tmp_path):
    source = checkpoints.checkpoint("gpt2", tmp_path)
    checkpoints.tokenizer(source, bos=False)
    hf_model = AutoModelForCausalLM.from_pretrained(source)
    model = load_model(hf_model, tokenizer=AutoTokenizer.from_pretrained(source), device="cpu")
    with pytest.raises(ValueError, match="begins with the first token of all"):
        choice_log_likelihoods(model, "", (" dog",))
    assert choice_log_likelihoods(model, "The", (" dog",)).item() < 0


def test_facts_are_complete_and_whole_sentences():
    items = load_facts(wordings=(0, 1, 2))
    assert len(items) == 40 * 3 * 3 * 10
    assert len({(i.id, i.language) for i in items}) == len(items)
    by_key = {(i.id, i.language): i for i in items}
    sentence = {k: i.prompt + i.choices[i.answer] for k, i in by_key.items()}
    assert sentence["fr/capital/0", "en"] == "The capital of France is Paris."
    assert sentence["jp/capital/0", "ja"] == "日本の首都は東京です。"
    assert sentence["ir/capital/0", "de"] == "Die Hauptstadt vom Iran heißt Teheran."
    assert sentence["dk/language/2", "fr"] == "Au Danemark, on entend surtout le danois."
    assert len(set(sentence.values())) == len(sentence)
    for item in items:
        assert item.prompt == item.prompt.strip()
        assert len(set(item.choices)) == len(item.choices) >= 5
        assert item.choices[0].startswith(" ") != (item.language in WITHOUT_SPACES)


def test_fact_table_has_an_accuracy_and_an_interval_a_cell(model):
    items = [i for i in load_facts(wordings=(0,)) if i.language == "en" and i.task == "continent"][:8]
    if max(len(model.tokenizer(i.prompt + i.choices[-1])["input_ids"]) for i in items) >= checkpoints.N_CTX:
        items = [Item(i.id, "en", i.task, "It", i.choices, i.answer) for i in items]
    answers = choice_accuracy(model, items, progress=False)
    row = fact_table(answers).iloc[0]
    assert (row.language, row.relation, row.wording, row.n) == ("en", "continent", 0, 8)
    assert row.low <= row.accuracy == answers.correct.mean() <= row.high
