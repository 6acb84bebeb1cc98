import pytest
import torch

import checkpoints
from mi_multilingual import Item, choice_accuracy, load_facts
from mi_multilingual.demo import fact_table
from mi_multilingual.evaluation.tasks import WITHOUT_SPACES, choice_log_likelihoods, common_prefix, opening


def by_hand(model, prompt, choice):
    """Log-likelihood of one continuation, one token at a time, without a batch or padding."""
    tok = model.tokenizer
    alone = tok(prompt, add_special_tokens=False)["input_ids"]
    whole = tok(prompt + choice, add_special_tokens=False)["input_ids"]
    first = common_prefix(alone, whole)
    total = 0.0
    for pos in range(first, len(whole)):
        tokens = torch.tensor([[tok.bos_token_id, *whole[:pos]]])
        with torch.no_grad():
            total += model(tokens, return_type="logits")[0, -1].double().log_softmax(-1)[whole[pos]].item()
    return total


def test_choices_in_a_batch_have_the_likelihood_of_each_alone(model):
    for prompt, choices in {
        "The dog": (" sleeps", " sleeps under the tree.", "s"),
        "犬が": ("川を渡った。", "古い木"),
    }.items():
        together = choice_log_likelihoods(model, prompt, choices)
        torch.testing.assert_close(
            together, torch.tensor([by_hand(model, prompt, c) for c in choices]).double(), atol=1e-4, rtol=1e-4
        )


def test_accuracy_counts_the_likeliest_choice(model):
    choices = (" sleeps", " under", " river")
    best = int(choice_log_likelihoods(model, "The dog", choices).argmax())
    items = [Item(str(i), "en", "test", "The dog", choices, i) for i in range(3)]
    table = choice_accuracy(model, items, progress=False)
    assert table.correct.tolist() == [i == best for i in range(3)]
    assert table.chosen.tolist() == [best] * 3


def test_mistakes_are_told(model):
    with pytest.raises(ValueError, match="has answer 2, its choices are 0..1"):
        Item("q", "en", "test", "a", ("b", "c"), 2)
    with pytest.raises(ValueError, match=f"the model takes {checkpoints.N_CTX}|the model takes 2048"):
        choice_log_likelihoods(model, "x " * 3000, ("y",))


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


def test_openings_are_a_few_words():
    assert opening("one two three four five", "en") == "one two three four five"
    assert opening("犬が古い木の下で眠っている。", "ja") == "犬が古い木の下で"
