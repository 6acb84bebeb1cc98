import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from mi_multilingual import identify_language, load_corpus
from mi_multilingual.corpora import DEMO_LANGUAGES
from mi_multilingual.evaluation.language_id import SCRIPTS, identifier, main_script, possible, scripts_of

STUDY = (*DEMO_LANGUAGES, "th")
letters = st.sampled_from("ab é я д 犬 水 の は ー ｱ ア ก ด 가 α 1 . \n".replace(" ", "") + " ")


@pytest.mark.parametrize("length", [20, 50])
def test_the_demo_sentences_are_recognised(length):
    documents = load_corpus("demo", split="evaluate").documents
    for language, texts in documents.items():
        cut = [t[:length] for t in texts[:40]]
        found = identify_language(cut, STUDY)
        assert found.count(language) >= 0.98 * len(cut), language


@pytest.mark.parametrize(
    ("text", "languages", "expected"),
    [
        ("これは", STUDY, "ja"),
        ("日本の", ["en", "ja", "zh"], "ja"),
        ("人之初，性本善。性相近，习相远。苟不教の", ["en", "ja", "zh"], "zh"),
        ("今天天气很好", ["en", "ja", "zh"], "zh"),
        ("今天天气很好", ["en", "ja"], "ja"),
        ("Goffredo Petrassi的兩個學生在這裡工作", ["de", "ja", "zh"], "zh"),
        ("ﾆﾎﾝｺﾞ", STUDY, "ja"),
        ("Привет", STUDY, "ru"),
        ("สวัสดี", STUDY, "th"),
        ("Я їм хліб і читаю книжку", ["ru", "uk", "en"], "uk"),
        ("Ово је кратка реченица", ["sr", "de"], "sr"),
        ("Ovo je kratka rečenica na našem jeziku", ["sr", "de"], "sr"),
        ("hello", ["en"], "en"),
        ("ｈｅｌｌｏ", ["en", "ja"], "en"),
        ("한국어 문장입니다", STUDY, ""),
        ("hello", ["ru", "th"], ""),
        ("", STUDY, ""),
        (" 12 345! ", STUDY, ""),
        ("12 345", ["en"], ""),
    ],
)
def test_script_decides_before_statistics(text, languages, expected):
    assert identify_language([text], languages) == [expected]


@given(st.text(letters))
def test_the_main_script_is_that_of_most_letters(text):
    assert main_script(text) in oracles.main_scripts(text)


@settings(max_examples=25)
@given(st.lists(st.text(), max_size=2), st.lists(st.sampled_from(STUDY), min_size=1))
def test_only_the_study_s_languages_are_found_whatever_the_text(texts, languages):
    found = identify_language(texts, languages)
    assert found == [identify_language([t], languages)[0] for t in texts]
    for text, language in zip(texts, found, strict=True):
        assert language == "" if not possible(text, languages) else language in possible(text, languages)


def test_every_language_has_a_script_and_the_table_only_known_ones():
    known = set(identifier().nb_classes)
    assert {code for codes in SCRIPTS.values() for code in codes.split()} <= known
    assert scripts_of("sr") == {"CYRILLIC", "LATIN"}
    assert scripts_of("vi") == {"LATIN"}
    assert scripts_of("ja") == {"HAN", "KANA"}


def test_py3langid_s_own_identifier_stays_as_it_is():
    import py3langid

    py3langid.set_languages(["de", "fr"])
    identify_language(["The dog sleeps under the old tree."], STUDY)
    assert py3langid.classify("The dog sleeps under the old tree.")[0] in ("de", "fr")
    py3langid.set_languages()
    assert len(identifier().nb_classes) > 100


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="language 'xx' is not known to the identifier; it knows ace, af"):
        identify_language(["a"], ["en", "xx"])
    with pytest.raises(ValueError, match="languages must be one or more, got none; name at least one"):
        identify_language(["a"], [])
    with pytest.raises(ValueError, match="texts must be a list of strings, got 'hello'"):
        identify_language("hello", ["en"])
    with pytest.raises(ValueError, match="languages must be a list of strings, got 'en'"):
        identify_language(["hello"], "en")
