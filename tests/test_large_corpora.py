"""Text that is not held in memory gives the numbers of text that is, and is tokenised once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import checkpoints
from mi_multilingual import Reading, load_corpus, perplexity, record, token_counts, token_rows, token_store
from mi_multilingual import documents as module
from mi_multilingual.corpora import Corpus
from mi_multilingual.documents import StoredTexts, cache_folder, kept
from mi_multilingual.evidence.activations import TENSORS, corpus_batches
from mi_multilingual.tokens import BOS_RULES, LAYOUTS, tokenizer_rows

TEXT = st.text("abc déf 犬が, 木😀", max_size=25)
TEXTS = st.lists(TEXT, min_size=1, max_size=9).filter(lambda t: any(x.strip() for x in t))
FIELDS = ("tokens", "valid", "n_bytes", "document")
PIECE = 40
"""Bytes of text tokenised at once in these tests."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return checkpoints.tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, and no text that is kept in memory."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MI_MULTILINGUAL_CACHE", str(folder))
    monkeypatch.setattr(module, "_IN_MEMORY", 0)
    monkeypatch.setattr(module, "_AT_ONCE", PIECE)
    return folder


@pytest.fixture
def tokenised(monkeypatch):
    """Every document that goes through a tokenizer, in order."""
    seen, real = [], token_store._encoded

    def noted(texts, tokenizer):
        seen.extend(texts)
        return real(texts, tokenizer)

    monkeypatch.setattr(token_store, "_encoded", noted)
    return seen


def stored(documents):
    corpus = Corpus(kept({k: iter(texts) for k, texts in documents.items()}), "stored")
    assert all(isinstance(texts, StoredTexts) for texts in corpus.documents.values())
    return corpus


def pieces(cache):
    return sorted(cache.glob("tokens/*/*/*"))


def same_rows(found, expected):
    return all(torch.equal(getattr(found, name), getattr(expected, name)) for name in FIELDS)


any_text = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@any_text
@given(TEXTS, st.integers(-12, 12), st.integers(-12, 12), st.sampled_from([-2, -1, 1, 2, 3]))
def test_documents_on_disk_are_read_as_a_tuple_is(texts, first, last, step):
    found = stored({"x": texts}).documents["x"]
    assert list(found) == texts
    assert [found[i] for i in range(-len(texts), len(texts))] == texts * 2
    part = found[first:last:step]
    assert list(part) == texts[first:last:step]
    assert list(part[::-1]) == texts[first:last:step][::-1]
    with pytest.raises(IndexError):
        found[len(texts)]
    whole, half = Corpus({"x": tuple(texts)}, "s"), Corpus({"x": found}, "s")
    assert half.fingerprint == whole.fingerprint


@any_text
@given(
    st.lists(TEXTS, min_size=2, max_size=3),
    st.integers(2, 7),
    st.sampled_from(LAYOUTS),
    st.sampled_from(BOS_RULES),
    st.one_of(st.none(), st.integers(1, 30)),
    st.booleans(),
)
def test_rows_are_those_of_text_in_memory(tokenizer, languages, window, layout, bos, most, equal):
    documents = {str(i): tuple(texts) for i, texts in enumerate(languages)}
    reading = Reading(window=window, layout=layout, bos=bos, max_tokens=most, equal_tokens=equal)

    def rows(corpus):
        try:
            return list(tokenizer_rows(tokenizer, corpus, reading))
        except ValueError as error:
            return str(error)

    expected, found = rows(Corpus(documents, "s")), rows(stored(documents))
    if isinstance(expected, str):
        assert found == expected
        return
    assert all(map(same_rows, found, expected))
    for number, done in ((1, 0), (3, 1)):
        mine, theirs = (list(corpus_batches(r, 2, (0, number), done)) for r in (found, expected))
        assert all(map(same_rows, mine, theirs))
        # The same batches as when all are made and most thrown away.
        all_batches = [batch for own in expected for batch in own.batches(2)]
        assert len(mine) == len(all_batches[done * number :: number])
        assert all(map(same_rows, mine, all_batches[done * number :: number]))
    counts = torch.cat([own.batch_tokens(2) for own in found])
    assert counts.tolist() == [batch.n_tokens for batch in all_batches]


def test_what_is_recorded_is_the_same_to_the_last_bit(ungated, corpus, cache):
    large, reading = stored(corpus.documents), Reading(layout="documents", window=8)
    one, other = (record(ungated, text, reading=reading, batch_size=2, progress=False) for text in (corpus, large))
    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)
    assert one.header() == other.header()
    tables = [perplexity(ungated, text, reading=reading, progress=False) for text in (corpus, large)]
    assert tables[0].equals(tables[1])
    assert token_counts(large, ungated.tokenizer).equals(token_counts(corpus, ungated.tokenizer))


def test_nothing_is_tokenised_twice(tokenizer, corpus, tokenised):
    large, reading = stored(corpus.documents), Reading(window=8, equal_tokens=True)
    first = list(tokenizer_rows(tokenizer, large, reading))
    assert len(tokenised) == len(set(tokenised)), "counting the tokens and making the rows"
    list(tokenizer_rows(tokenizer, large, Reading(window=4, layout="documents", bos="none")))
    n_all = len(tokenised)
    assert sorted(tokenised) == sorted(t for texts in corpus.documents.values() for t in texts)
    again = list(tokenizer_rows(tokenizer, stored(corpus.documents), reading))
    assert all(map(same_rows, again, first))
    assert len(tokenised) == n_all, "the same text, written anew"


def test_another_tokenizer_finds_no_tokens_of_the_first(tokenizer, tokenised, tmp_path):
    large = stored({"x": ("a dog barks",)})
    reading = Reading(window=4, layout="documents")
    token_rows(large, "x", tokenizer, reading)
    more = checkpoints.tokenizer(tmp_path / "more")
    token_rows(large, "x", more, reading)
    assert len(tokenised) == 1, "the same tokenizer, loaded again"
    more.add_tokens(["dog"])
    assert more.convert_tokens_to_ids("dog") in token_rows(large, "x", more, reading).tokens
    assert len(tokenised) == 2
    more("a", padding="max_length", max_length=3, truncation=True)
    token_rows(large, "x", more, reading)
    assert len(tokenised) == 2, "padding of another call is no other tokenizer"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_more_is_tokenised_than_is_asked_for(tokenizer, tokenised, layout):
    texts = tuple(f"{i} dogs bark at the old tree" for i in range(200))
    large = stored({"long": texts, "short": texts[:3]})
    reading = Reading(window=4, layout=layout, bos="none", max_tokens=9)
    rows = token_rows(large, "long", tokenizer, reading)
    assert rows.n_tokens == 9 if layout == "documents" else 8
    assert sum(len(t.encode()) for t in tokenised) < 2 * PIECE
    tokenised.clear()
    found = list(tokenizer_rows(tokenizer, large, Reading(window=4, layout=layout, bos="none", equal_tokens=True)))
    assert found[0].n_tokens == found[1].n_tokens
    assert len(tokenised) < 8


def truncated(path):
    path.write_bytes(path.read_bytes()[:-7])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def emptied(path):
    path.write_bytes(b"")


def of_others(path):
    save_file({"ids": torch.zeros(3)}, path, {"schema": "tokens/1", "header": "{}"})


def in_other_words(path):
    save_file(load_file(path), path, {"schema": "tokens/1", "header": "no JSON"})


@pytest.mark.parametrize("damage", [truncated, flipped, emptied, of_others, in_other_words, Path.unlink])
def test_a_damaged_file_is_noticed_and_made_again(tokenizer, corpus, cache, tokenised, damage):
    large, reading = stored(corpus.documents), Reading(window=4, layout="documents")
    expected = list(tokenizer_rows(tokenizer, Corpus(dict(corpus.documents), "s"), reading))
    list(tokenizer_rows(tokenizer, large, reading))
    whole = {path: load_file(path)["ids"].tolist() for path in pieces(cache)}
    assert len(whole) > 3
    damage(pieces(cache)[1])
    tokenised.clear()
    assert all(map(same_rows, tokenizer_rows(tokenizer, large, reading), expected))
    assert tokenised
    assert {path: load_file(path)["ids"].tolist() for path in pieces(cache)} == whole


AT_ONCE = """
import sys
import checkpoints
from mi_multilingual import documents, load_corpus, Reading, token_rows
from transformers import PreTrainedTokenizerFast
documents._IN_MEMORY, documents._AT_ONCE = 0, 40
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[2])
for language in ("en", "fr"):
    rows = token_rows(load_corpus(sys.argv[1]), language, tokenizer, Reading(window=8))
    print(rows.tokens.tolist())
"""


@pytest.mark.slow
def test_two_processes_share_the_cache(tokenizer, tmp_path, cache):
    (tmp_path / "texts").mkdir()
    for k in ("en", "fr"):
        lines = [f"{k} {i} {s}" for i in range(100) for s in checkpoints.SENTENCES[k]]
        (tmp_path / "texts" / f"{k}.txt").write_text("\n".join(lines), encoding="utf-8")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = [sys.executable, "-c", AT_ONCE, str(tmp_path / "texts"), str(tmp_path / "tokenizer")]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    corpus = load_corpus(tmp_path / "texts")
    expected = "".join(f"{token_rows(corpus, k, tokenizer, Reading(window=8)).tokens.tolist()}\n" for k in ("en", "fr"))
    assert said == [expected, expected]
    assert all(path.suffix == ".safetensors" for path in pieces(cache)), "nothing half written is left"


def test_small_text_does_not_touch_the_disk(tokenizer, monkeypatch, cache, tmp_path):
    monkeypatch.setattr(module, "_IN_MEMORY", 25)
    (tmp_path / "en.txt").write_text("ten letters\n" * 2)
    corpus = load_corpus(tmp_path)
    assert corpus.documents["en"] == ("ten letters",) * 2
    token_rows(corpus, "en", tokenizer, Reading(window=4))
    assert not cache.exists()
    (tmp_path / "fr.txt").write_text("dix lettres\n" * 2)
    with_more = load_corpus(tmp_path).documents
    assert (type(with_more["en"]), type(with_more["fr"])) == (tuple, StoredTexts)
    assert list(with_more["fr"]) == ["dix lettres"] * 2
    assert list(cache.iterdir()) == [], "the documents' file has no name, and goes with the process"


def test_every_format_is_read_to_the_disk(tmp_path):
    from test_corpora import write_folder

    (tmp_path / "texts").mkdir()
    write_folder(tmp_path / "texts")
    corpus = load_corpus(tmp_path / "texts")
    assert {k: tuple(texts) for k, texts in corpus.documents.items()} == {
        "en": ("one line", "another line"),
        "fr": ("une ligne",),
        "ja": ("一行\n二行",),
        "tr": ("satır bir", "satır iki"),
    }
    assert list(load_corpus(tmp_path / "texts", max_documents=1).documents["tr"]) == ["satır bir"]


def test_the_same_text_under_two_languages_is_warned_of(tmp_path):
    (tmp_path / "en.txt").write_text("shared, longer\nshared\nown\nshared\n")
    (tmp_path / "fr.txt").write_text("shared\nà nous\nencore\nshared, longer\n")
    told = r"2 documents are the same in 'en' and 'fr' \(66.7% of the smaller\), e.g. 'shared';"
    with pytest.warns(UserWarning, match=told):
        load_corpus(tmp_path)


def test_the_cache_folder_is_the_one_that_is_named(monkeypatch, tmp_path, cache):
    assert cache_folder() == cache
    monkeypatch.delenv("MI_MULTILINGUAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "mi_multilingual"
    monkeypatch.setenv("MI_MULTILINGUAL_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="the cache must be a folder that can be written, got .*MI_MULTILINGUAL_CACHE"):
        stored({"x": ("a",)})
