import gzip
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import checkpoints
from mi_multilingual import load_corpus, token_counts, token_rows, token_store
from mi_multilingual.corpora import Corpus
from mi_multilingual.tokens import Reading

PUD = Path(__file__).parents[2] / "shared" / "data" / "parallel" / "pud.tsv.gz"
TEXTS = st.lists(st.text("abc déf 犬が, 木😀", min_size=1, max_size=25), min_size=1, max_size=6).filter(
    lambda t: any(x.strip() for x in t)
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return checkpoints.tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def without_bos(tmp_path_factory):
    return checkpoints.tokenizer(tmp_path_factory.mktemp("tokenizer"), bos=False, pad=False)


def write_folder(folder: Path) -> None:
    (folder / "en.txt").write_text("one line\n\nanother line\n", encoding="utf-8")
    with gzip.open(folder / "fr.txt.gz", "wt", encoding="utf-8") as file:
        file.write("une ligne\n")
    (folder / "ja.jsonl").write_text(json.dumps({"text": "一行\n二行"}) + "\n", encoding="utf-8")
    pd.DataFrame({"text": ["satır bir", "satır iki"]}).to_parquet(folder / "tr.parquet")


def test_a_folder_is_read_in_every_format(tmp_path):
    write_folder(tmp_path)
    corpus = load_corpus(tmp_path)
    assert dict(corpus.documents) == {
        "en": ("one line", "another line"),
        "fr": ("une ligne",),
        "ja": ("一行\n二行",),
        "tr": ("satır bir", "satır iki"),
    }
    assert load_corpus(tmp_path, languages=["tr", "en"]).languages == ("tr", "en")
    assert load_corpus(tmp_path, max_documents=1).documents["tr"] == ("satır bir",)


def test_a_split_is_part_of_the_file_name(tmp_path):
    (tmp_path / "en.train.txt").write_text("for training\n")
    (tmp_path / "en.valid.txt").write_text("for validation\n")
    assert load_corpus(tmp_path, split="valid").documents["en"] == ("for validation",)


def test_the_fingerprint_tells_content_and_order_apart():
    a, b = {"en": ("x", "y"), "fr": ("z",)}, {"fr": ("z",), "en": ("x", "y")}
    assert Corpus(a, "s").fingerprint == Corpus(a, "elsewhere").fingerprint
    assert (
        len(
            {
                Corpus(c, "s").fingerprint
                for c in (a, b, {"en": ("xy",), "fr": ("z",)}, {"en": ("x", "y"), "fr": ("Z",)})
            }
        )
        == 4
    )


def test_hugging_face_data_sets_are_streamed_through_the_real_call(tmp_path):
    for language, texts in {"en": ["a", "b", "c"], "fr": ["d", "e", "f"]}.items():
        (tmp_path / f"20231101.{language}").mkdir()
        pd.DataFrame({"id": range(3), "text": texts}).to_parquet(tmp_path / f"20231101.{language}" / "train-0.parquet")
    listed = "".join(
        f"- config_name: 20231101.{k}\n  data_files:\n  - split: train\n    path: 20231101.{k}/*.parquet\n"
        for k in ("en", "fr")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    corpus = load_corpus(str(tmp_path), languages=["fr", "en"], config="20231101.{language}", max_documents=2)
    assert dict(corpus.documents) == {"fr": ("d", "e"), "en": ("a", "b")}
    with pytest.raises(ValueError, match="cannot load .*20231101.xx"):
        load_corpus(str(tmp_path), languages=["xx"], config="20231101.{language}")
    with pytest.raises(ValueError, match="no text in column 'body', it has id, text"):
        load_corpus(str(tmp_path), languages=["en"], config="20231101.{language}", column="body")
    with pytest.raises(ValueError, match="languages must be named for a data set"):
        load_corpus(str(tmp_path), config="20231101.{language}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("en.txt", b"", "en.txt is empty"),
        ("en.txt", b"good\n\xff\xfe bad\n", r"en.txt, line 2: not UTF-8"),
        ("en.txt", b" \n\n", "has no text for 'en'"),
        ("en.jsonl", b'{"text": "a"}\n{"text": \n', "en.jsonl, line 2: not JSON"),
        ("en.jsonl", b'{"body": "a"}\n', "en.jsonl, line 1: no text in column 'text'"),
        ("notes.md", b"x", "has no <language>.txt"),
    ],
)
def test_broken_files_are_told_with_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_corpus(tmp_path)


def test_a_table_of_translations_is_read_column_by_column(tmp_path):
    """The first column is known by its place: "id" is Indonesian, too."""
    lines = ["id\ten\tid", 'a1\tIt rains.\t"Hujan ""lebat""."', "a2\tWe go.\tKita pergi."]
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with gzip.open(tmp_path / "t.tsv.gz", "wt", encoding="utf-8") as file:
        file.write("\r\n".join(lines))
    for name in ("t.tsv", "t.tsv.gz"):
        corpus = load_corpus(tmp_path / name)
        assert dict(corpus.documents) == {"en": ("It rains.", "We go."), "id": ('Hujan "lebat".', "Kita pergi.")}
    assert load_corpus(tmp_path / "t.tsv", languages=["id"], max_documents=1).documents["id"] == ('Hujan "lebat".',)
    parts = [load_corpus(tmp_path / "t.tsv", split=split).documents["en"] for split in ("identify", "evaluate")]
    assert parts == [("It rains.",), ("We go.",)]
    with pytest.raises(ValueError, match=r"split of .*t\.tsv must be 'identify' or 'evaluate'.* got 'train'"):
        load_corpus(tmp_path / "t.tsv", split="train")
    with pytest.raises(ValueError, match="has no column 'fr'; it has en, id"):
        load_corpus(tmp_path / "t.tsv", languages=["fr"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no language; name at least one"),
        (b"id\ten\tfr\n1\tgood\tbon\n2\tbad\n", "t.tsv, line 3: must have a text in each of en, fr"),
        (b"id\ten\tfr\n1\tgood\t \n", "t.tsv, line 2: must have a text"),
        (b"id\ten\n1\t\xff\n", "t.tsv, line 2: not UTF-8"),
        (b'id\ten\n1\t"no end\n', "t.tsv: not a table of tab-separated columns"),
    ],
)
def test_broken_tables_of_translations_are_told(tmp_path, content, message):
    (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_corpus(tmp_path / "t.tsv")


@pytest.mark.skipif(not PUD.exists(), reason="the sentences of PUD are not beside this checkout")
def test_the_sentences_of_pud_are_read_whole():
    corpus = load_corpus(PUD)
    assert {k: len(texts) for k, texts in corpus.documents.items()} == dict.fromkeys(corpus.languages, 1000)
    assert corpus.languages == ("en", "de", "es", "fr", "id", "ru", "th", "tr", "zh")
    assert not any('""' in text for texts in corpus.documents.values() for text in texts)


def test_mistakes_are_told(tmp_path, tokenizer, without_bos):
    write_folder(tmp_path)
    with pytest.raises(ValueError, match=r"has no file for 'de', such as de.txt; it has en, fr, ja, tr"):
        load_corpus(tmp_path, languages=["de"])
    (tmp_path / "en.jsonl").write_text('{"text": "again"}')
    with pytest.raises(ValueError, match=r"two files for 'en': en.jsonl and en.txt"):
        load_corpus(tmp_path)
    (tmp_path / "en.jsonl").unlink()
    pd.DataFrame({"text": ["a", None]}).to_parquet(tmp_path / "tr.parquet")
    with pytest.raises(ValueError, match=r"tr.parquet, row 2: column 'text' holds None"):
        load_corpus(tmp_path)
    corpus = Corpus({"ja": ("短い",)}, "s")
    with pytest.raises(
        ValueError, match="no text for 'ja' after dropping the last partial window: .* one window needs 255"
    ):
        token_rows(corpus, "ja", tokenizer, Reading(window=256))
    with pytest.raises(ValueError, match="a tokenizer without a BOS token, got 'row'"):
        token_rows(corpus, "ja", without_bos, Reading(window=8, bos="row"))
    with pytest.raises(ValueError, match="layout must be one of stream, documents, got 'lines'"):
        token_rows(corpus, "ja", tokenizer, Reading(window=8, layout="lines"))
    with pytest.raises(ValueError, match="got 'test'"):
        load_corpus("demo", split="test")
    with pytest.raises(ValueError, match="has no 'xx'; it has ja"):
        corpus.take(["xx"])


def test_the_same_text_under_two_languages_is_warned_of(tmp_path):
    (tmp_path / "en.txt").write_text("shared\nown\n")
    (tmp_path / "fr.txt").write_text("shared\nà nous\nencore\n")
    with pytest.warns(UserWarning, match=r"1 documents are the same in 'en' and 'fr' \(50.0% of the smaller\)"):
        load_corpus(tmp_path)


def test_a_tokenizer_that_does_not_know_the_script_is_warned_of(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "dog": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tok = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    with pytest.warns(UserWarning, match="maps 50% of the tokens of 'en' to unknown"):
        token_rows(Corpus({"en": ("dog cat",)}, "s"), "en", tok, Reading(window=2))


@given(TEXTS, st.integers(2, 9), st.sampled_from(["none", "row", "count"]))
def test_stream_rows_are_the_id_stream_without_its_tail(tokenizer, texts, window, bos):
    ids = [i for row in tokenizer(texts, add_special_tokens=False)["input_ids"] for i in row]
    room = window - (bos != "none")
    if len(ids) < room:
        return
    rows = token_rows(Corpus({"x": tuple(texts)}, "s"), "x", tokenizer, Reading(window=window, bos=bos))
    assert rows.tokens.shape[1] == window
    text_tokens = rows.tokens if bos == "none" else rows.tokens[:, 1:]
    assert text_tokens.flatten().tolist() == ids[: len(ids) // room * room]
    assert rows.n_tokens == text_tokens.numel() + (len(rows.tokens) if bos == "count" else 0)
    if bos != "none":
        assert (rows.tokens[:, 0] == tokenizer.bos_token_id).all()
        assert (rows.valid[:, 0] == (bos == "count")).all()


@given(TEXTS, st.integers(2, 9), st.integers(1, 60))
def test_document_rows_lose_nothing_and_their_bytes_add_up(tokenizer, texts, window, at_once):
    corpus = Corpus({"x": tuple(texts)}, "s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_store, "_ENCODED", at_once)
        rows = token_rows(corpus, "x", tokenizer, Reading(window=window, layout="documents"))
    for i, text in enumerate(texts):
        mine = rows.document == i
        assert rows.tokens[mine][rows.valid[mine]].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert int(rows.n_bytes[mine].sum()) == len(text.encode())
    assert (rows.n_bytes[~rows.valid] == 0).all()


@given(TEXTS, st.integers(1, 4))
def test_batches_are_the_rows_longest_first_each_cut_to_its_longest(tokenizer, texts, batch_size):
    rows = token_rows(Corpus({"x": tuple(texts)}, "s"), "x", tokenizer, Reading(window=8, layout="documents"))
    batches = list(rows.batches(batch_size))
    kept = sorted(t[v].tolist() for b in batches for t, v in zip(b.tokens, b.valid, strict=True))
    assert kept == sorted(t[v].tolist() for t, v in zip(rows.tokens, rows.valid, strict=True))
    widths = [b.tokens.shape[1] for b in batches]
    assert widths == sorted(widths, reverse=True)
    assert all(bool(b.valid[:, -1].any()) and len(b.tokens) <= batch_size for b in batches)


def test_bytes_of_a_character_split_over_tokens_are_counted_once(tokenizer):
    text = "😀😀犬"
    rows = token_rows(Corpus({"x": (text,)}, "s"), "x", tokenizer, Reading(window=32, layout="documents"))
    assert rows.n_tokens > len(text)
    assert int(rows.n_bytes.sum()) == len(text.encode())


def test_the_tokenizers_own_special_tokens_are_the_default(tokenizer, without_bos):
    corpus = Corpus({"x": ("The dog sleeps under the old tree.",)}, "s")
    assert token_rows(corpus, "x", tokenizer, Reading(window=4)).tokens[0, 0] == tokenizer.bos_token_id
    assert token_rows(corpus, "x", without_bos, Reading(window=4)).valid.all()


def test_token_counts(tokenizer, corpus):
    table = token_counts(corpus, tokenizer).set_index("language")
    assert table.n_documents.tolist() == [3, 3, 3]
    assert table.n_bytes["ja"] == sum(len(s.encode()) for s in checkpoints.SENTENCES["ja"])
    expected = [
        sum(len(i) for i in tokenizer(t, add_special_tokens=False)["input_ids"]) for t in checkpoints.SENTENCES.values()
    ]
    assert table.n_tokens.tolist() == expected


def test_the_demo_corpus_is_parallel_and_clean():
    import unicodedata

    whole = load_corpus("demo")
    parts = [load_corpus("demo", split=s) for s in ("identify", "evaluate")]
    assert whole.languages == ("en", "de", "es", "fr", "id", "ja", "ru", "tr", "vi", "zh")
    for language, texts in whole.documents.items():
        assert len(texts) >= 300
        assert len(set(texts)) == len(texts)
        assert all(t == t.strip() and unicodedata.is_normalized("NFC", t) for t in texts)
        assert sorted(texts) == sorted(p for part in parts for p in part.documents[language])
    assert not any(set(parts[0].documents[k]) & set(parts[1].documents[k]) for k in whole.languages)
    assert len({len(t) for t in whole.documents.values()}) == 1
    assert torch.tensor([len(p.documents["en"]) for p in parts]).min() >= 80
