import json
from pathlib import Path

import pandas as pd
import pytest

from mi_multilingual import (
    in_every_language,
    last_number,
    load_belebele,
    load_mgsm,
    load_mpararel,
    load_xcopa,
    load_xnli,
    parallel_items,
)

DATA = Path(__file__).parents[2] / "shared" / "data" / "tasks"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the task sets are not beside the project (../shared/data)")


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")


def copa(premise, one, two, question, label, idx=0):
    return {"premise": premise, "choice1": one, "choice2": two, "question": question, "label": label, "idx": idx}


def test_xcopa_asks_after_the_premise_what_most_files_say(tmp_path):
    write(tmp_path / "id.val.jsonl", [copa("Kantor itu tutup.", "Saat itu libur.", "Hari panas.", "cause", 0)])
    write(tmp_path / "tr.val.jsonl", [copa("Ofis kapalıydı.", "Irmak taştı.", "İpek geldi.", "effect", 1)])
    write(tmp_path / "zh.val.jsonl", [copa("办公室关门了。", "那是个假期。", "那是个夏天。", "cause", 0)])
    items = {item.language: item for item in load_xcopa(tmp_path, split="val")}
    assert items["id"].prompt == "Kantor itu tutup karena"
    assert items["id"].choices == (" saat itu libur.", " hari panas.")
    assert items["tr"].prompt == "Ofis kapalıydı çünkü"
    assert items["tr"].choices == (" ırmak taştı.", " ipek geldi.")
    assert (items["tr"].id, items["tr"].task, items["tr"].answer) == ("xcopa/0", "xcopa", 1)
    assert (items["zh"].prompt, items["zh"].choices) == ("办公室关门了因为", ("那是个假期。", "那是个夏天。"))
    assert [i.language for i in load_xcopa(tmp_path, languages=["zh", "id"], split="val")] == ["zh", "id"]
    write(tmp_path / "vi.test.jsonl", [copa("Văn phòng đóng cửa.", "Nó nhỏ.", "Nó to.", "effect", 1)])
    assert load_xcopa(tmp_path)[0].prompt == "Văn phòng đóng cửa vì vậy"


def test_mgsm_is_a_question_and_a_number(tmp_path):
    (tmp_path / "de.tsv").write_text('Wie viel ist 3 "mal" 4?\t12\n\nUnd 2\tmal 500?\t1,000\n', encoding="utf-8")
    one, two = load_mgsm(tmp_path)
    assert one.prompt == 'Frage: Wie viel ist 3 "mal" 4?\nAntwort:'
    assert (one.id, one.choices, one.answer, one.answer_text) == ("mgsm/1", (), "12", "12")
    assert (two.id, last_number(two.answer_text)) == ("mgsm/3", "1000")


def fact(subject, object_, labels):
    return {"sub_uri": subject, "obj_uri": object_, "sub_label": labels[0], "obj_label": labels[1]}


@pytest.fixture
def facts(tmp_path):
    """Two countries in two languages, one with two official languages; P36 has no usable pattern in Japanese."""
    for k, names in {"en": ("the capital of [X] is [Y]", "[Y] is the capital of [X]", "[X]'s capital, [Y] "),
                     "ja": ("[Y]は[X]の首都です",)}.items():  # fmt: skip
        write(tmp_path / k / "P36.patterns.jsonl", [{"pattern": p} for p in names])
    write(
        tmp_path / "en" / "P36.tuples.jsonl", [fact("F", "P", ("France", "Paris")), fact("J", "T", ("Japan", "Tokyo"))]
    )
    write(tmp_path / "ja" / "P36.tuples.jsonl", [fact("F", "P", ("フランス", "パリ"))])
    checked = {"pattern": "In [X] speak [Y]", "checked-by-human": True}
    patterns = {
        "en": [{"pattern": "[X] says [Y]", "checked-by-human": False}, checked],
        "ja": [{"pattern": "[X]の言語は[Y]"}, {"pattern": "[Y][X]と[Y]"}],
    }
    swiss = [fact("C", "D", ("Switzerland", "German")), fact("C", "R", ("Switzerland", "French"))]
    others = [fact("F", "R", ("France", "French")), fact("U", "E", ("the UK", "English"))]
    for k, rows in {"en": [*swiss, *others], "ja": [fact("F", "R", ("フランス", "フランス語"))]}.items():
        write(tmp_path / k / "P37.patterns.jsonl", patterns[k])
        write(tmp_path / k / "P37.tuples.jsonl", rows)
    return tmp_path


def test_mpararel_asks_what_ends_with_the_gap_and_counts_the_rest(facts):
    items, counts = load_mpararel(facts)
    by_id = {(i.id, i.language): i for i in items}
    france = by_id["P36/F/P/0", "en"]
    assert (france.prompt, france.choices, france.answer) == ("the capital of France is", (" Paris", " Tokyo"), 0)
    swiss = by_id["P37/C/R/0", "en"]
    assert (swiss.prompt, swiss.choices, swiss.answer_text) == (
        "In Switzerland speak",
        (" English", " French"),
        "French",
    )
    assert by_id["P37/F/R/0", "ja"].prompt + by_id["P37/F/R/0", "ja"].choices[0] == "フランスの言語はフランス語"
    table = counts.set_index(["language", "relation"])
    assert list(table.loc[("en", "P36")]) == [3, 2, 2, 2]
    assert list(table.loc[("ja", "P36")]) == [1, 0, 1, 0]
    assert list(table.loc[("en", "P37")]) == [2, 2, 4, 4]
    assert list(table.loc[("ja", "P37")]) == [2, 1, 1, 1]
    both, _ = load_mpararel(facts, languages=["en"], relations=["P36"], wordings=2)
    assert [i.id for i in both] == ["P36/F/P/0", "P36/J/T/0", "P36/F/P/1", "P36/J/T/1"]
    assert both[2].prompt + both[2].choices[0] == "France's capital, Paris"
    assert set(parallel_items(in_every_language(items))) == {"P37/F/R/0"}


def hub_folder(folder, configs):
    """A local copy as it is downloaded: a card that names the configurations, and a parquet file for each."""
    lines = ["---", "configs:"]
    for config, (split, rows) in configs.items():
        path = folder / config / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(path)
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def test_xnli_from_a_local_copy(tmp_path):
    rows = {
        "en": [{"premise": "It rains. ", "hypothesis": "It is wet.", "label": 0}],
        "fr": [{"premise": "Il pleut.", "hypothesis": "Il fait sec.", "label": 2}],
    }
    folder = hub_folder(tmp_path / "xnli", {k: ("validation", r) for k, r in rows.items()})
    en, fr = load_xnli(folder, languages=["en", "fr"])
    assert en.prompt.startswith('Take the following as truth: It rains.\nThen the following statement: "It is wet." is')
    assert (en.id, en.task, en.answer_text, fr.language, fr.answer_text) == ("xnli/0", "xnli", "true", "fr", "false")
    assert set(parallel_items([en, fr])) == {"xnli/0"}
    with pytest.raises(ValueError, match="XNLI has no language 'ja'; choose from: ar, bg"):
        load_xnli(folder, languages=["ja"])
    with pytest.raises(ValueError, match=r"cannot read .*'de', 'validation'"):
        load_xnli(folder, languages=["de"])
    with pytest.raises(ValueError, match=r"cannot read .*'en', 'test'"):
        load_xnli(folder, languages=["en"], split="test")
    with pytest.raises(ValueError, match="names must be a list of strings, got 'en'"):
        load_xnli(folder, languages="en")


def reading(question, answers, right, **more):
    numbered = {f"mc_answer{i}": a for i, a in enumerate(answers, start=1)}
    same = {"flores_passage": "P.", "link": "https://x/y", "question_number": 2, "correct_answer_num": str(right)}
    return {**same, "question": question, **numbered, **more}


def test_belebele_from_a_local_copy(tmp_path):
    rows = {
        "eng_Latn": ("test", [reading("Who?", ["A man", "She", "They", "No one"], 2)]),
        "jpn_Jpan": ("test", [reading("誰？", ["男", "彼女", "彼ら", "誰も"], 2)]),
        "fra_Latn": ("test", [{"question": "Qui ?"}]),
    }
    folder = hub_folder(tmp_path / "belebele", rows)
    en, ja = load_belebele(folder, languages=["en", "ja"])
    assert en.prompt == "P.\nQuestion: Who?\nAnswer:"
    assert (en.choices[1], en.answer, ja.choices[1], ja.answer_text) == (" She", 1, "彼女", "彼女")
    assert ja.prompt == "P.\n質問: 誰？\n答え:"
    assert set(parallel_items([en, ja])) == {"belebele/https://x/y/2"}
    with pytest.raises(ValueError, match=r"\(fra_Latn\), row 0: no 'flores_passage'"):
        load_belebele(folder, languages=["fr"])
    with pytest.raises(ValueError, match="there is no Belebele prompt for 'xx'"):
        load_belebele(folder, languages=["xx"])


def test_damaged_and_missing_files_are_named(tmp_path, facts):
    for match, call in {
        "has no <language>.test.jsonl file for 'any'": lambda: load_xcopa(tmp_path / "nowhere"),
        "has no <language>.tsv file for 'fr'; choose from: none": lambda: load_mgsm(tmp_path, languages=["fr"]),
        "has no folder for 'de'; choose from: en, ja": lambda: load_mpararel(facts, languages=["de"]),
        "has no <relation>.patterns.jsonl for 'P1'": lambda: load_mpararel(facts, relations=["P1"]),
        r"no pattern that ends with \[Y\]": lambda: load_mpararel(facts, languages=["ja"], relations=["P36"]),
        "names must be a list of strings, got 'en'": lambda: load_mpararel(facts, languages="en"),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
    (facts / "ja" / "P37.tuples.jsonl").unlink()
    with pytest.raises(ValueError, match=r"P37.tuples.jsonl is missing"):
        load_mpararel(facts)
    for match, text in {
        r"line 2: not JSON": b'{"premise": "", "choice1": "", "choice2": "", "question": "", "label": 0, "idx": 0}\n{',
        r"line 1: not UTF-8": b"\xff\n",
        r"line 1: no 'choice1'": b'{"premise": "a"}',
        r"line 1: no 'premise'": b"[1]",
    }.items():
        (tmp_path / "th.test.jsonl").write_bytes(text)
        with pytest.raises(ValueError, match=match):
            load_xcopa(tmp_path)
    (tmp_path / "qu.test.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="there is no XCOPA prompt for 'qu'"):
        load_xcopa(tmp_path, languages=["qu"])
    (tmp_path / "en.tsv").write_text("How many?\tmany\n")
    with pytest.raises(ValueError, match=r"en.tsv, line 1: must be a question, a tab and a number"):
        load_mgsm(tmp_path)


@needs_data
def test_xcopa_as_published():
    items = load_xcopa(DATA / "xcopa")
    assert {k: sum(i.language == k for i in items) for k in ("id", "th", "tr", "vi", "zh")} == dict.fromkeys(
        ("id", "th", "tr", "vi", "zh"), 500
    )
    asked = parallel_items(items)
    for same in asked.values():
        assert len({item.answer for item in same.values()}) == 1
        because = {item.prompt.endswith(("karena", "เพราะ", "çünkü", "bởi vì", "因为")) for item in same.values()}
        assert len(because) == 1


@needs_data
def test_mgsm_as_published():
    items = load_mgsm(DATA / "mgsm")
    assert len(items) == 8 * 250
    for same in parallel_items(items).values():
        assert len({last_number(item.answer_text) for item in same.values()}) == 1


@needs_data
def test_mpararel_as_published():
    items, counts = load_mpararel(DATA / "mpararel", relations=["P30", "P36"])
    assert (counts.n_usable <= counts.n_patterns).all()
    assert len(counts) == 24
    assert counts.set_index(["language", "relation"]).n_usable["ja", "P30"] == 0
    assert len(items) == counts.n_items.sum() > 5000
    assert not any("[X]" in i.prompt or "[Y]" in i.prompt for i in items)
    western = [i for i in items if i.language in ("de", "en", "fr")]
    common = sum(len(set.intersection(*(facts_of(k, r) for k in ("de", "en", "fr")))) for r in ("P30", "P36"))
    assert len(parallel_items(in_every_language(western))) == common > 0


def facts_of(language, relation):
    text = (DATA / "mpararel" / language / f"{relation}.tuples.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines() if line]
    return {(row["sub_uri"], row["obj_uri"]) for row in rows}
