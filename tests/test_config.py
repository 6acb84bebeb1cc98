import re

import pytest
import yaml
from pydantic import ValidationError

from mi_multilingual import DETECTORS, Detector, Reading, Setting, lap_scores
from mi_multilingual.experiments.config import Study
from mi_multilingual.experiments.loading import load_study, merged, preset_names
from mi_multilingual.studies.table import STUDIES


@pytest.fixture
def study(tmp_path):
    def load(text, *overrides):
        path = tmp_path / "study.yaml"
        path.write_text(text, encoding="utf-8")
        return load_study(path, overrides)

    return load


def test_one_value_is_an_axis_of_one_point_and_short_forms_stand_for_mappings(study):
    short = study("model: gpt2\ndetector: lap\nintervention: zero\nrate: 0.02\nablated: fr\ncorpus: texts")
    long = study(
        "model: [gpt2]\ndetector: [{name: lap}]\nintervention: [{kind: zero}]\nrate: [0.02]\nablated: [fr]\n"
        "corpus: {source: texts}"
    )
    assert short == long
    assert short.rate == (0.02,)


def test_the_demo_corpus_brings_its_splits_and_others_do_not(study):
    assert study("").corpus.identify == "identify"
    assert study("corpus: {languages: [en, fr]}").corpus.layout == "documents"
    assert study("corpus: {languages: [en, fr], layout: stream}").corpus.layout == "stream"
    assert study("corpus: texts").corpus.reading == Reading()
    assert study("corpus: texts").corpus.identify is None


def test_the_keys_of_the_corpus_say_how_text_is_read(study):
    made = study(
        "corpus: {source: texts, layout: documents, window: 64, bos: none, max_tokens: 900, equal_tokens: true}"
    )
    assert made.corpus.reading == Reading(64, "documents", "none", 900, True)


def test_settings_of_a_detector_are_those_of_its_row_with_its_defaults(study):
    made = study("detector: [lape, {name: lap, threshold: 0}, {name: sharing, tokens: any}, {name: plnd, epsilon: 2}]")
    settings = {d.name: d.settings for d in made.detector}
    assert settings == {
        "lape": {"filter_rate": 0.95, "activation_bar_ratio": 0.95},
        "lap": {"threshold": 0.0},
        "sharing": {"threshold": 0.0, "tokens": "any"},
        "plnd": {"score": "paper", "epsilon": 2.0},
    }
    assert isinstance(settings["plnd"]["epsilon"], float), "one key for 2 and 2.0"
    assert made.detector[2].scope_for("facts") == "input"
    assert made.detector[2].scope_for("mgsm") == "corpus"
    assert made.detector[0].scope_for("facts") is None


@pytest.fixture
def toy(monkeypatch):
    """A detector that is put into the table and nowhere else."""
    rows = {
        "n": Setting(3.0, "a number", 1.0),
        "mood": Setting("calm", "a word", choices=("calm", "wild")),
    }
    monkeypatch.setitem(DETECTORS, "toy", Detector("activations", lap_scores, settings=rows))


@pytest.mark.usefixtures("toy")
def test_a_new_row_in_the_table_of_detectors_is_all_that_study_files_need(study):
    made = study("detector: [toy, {name: toy, n: 5, mood: wild}]")
    assert [d.settings for d in made.detector] == [{"n": 3, "mood": "calm"}, {"n": 5, "mood": "wild"}]
    assert study(yaml.safe_dump(made.model_dump(mode="json"))) == made
    for text, words in (
        ("moood: calm", "line 3: key 'detector.moood' is unknown; did you mean 'mood'? allowed: name, n, mood"),
        ("mood: mild", "line 3: detector.mood cannot be 'mild'; did you mean 'wild'? allowed: calm, wild"),
        ("n: 0", "line 3: detector.n must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            study(f"detector:\n  name: toy\n  {text}")
    with pytest.raises(ValueError, match="did you mean 'toy'"):
        study("detector: toyy")


def test_overrides_stand_over_the_file_and_the_file_over_its_preset(study):
    made = study("preset: kojima\nrate: 0.1\ngeneration: {n: 3}", "generation.top_p=0.5", "corpus.languages=[en, fr]")
    assert made.detector[0].name == "average_precision"
    assert made.rate == (0.1,)
    assert (made.generation.n, made.generation.top_p, made.generation.temperature) == (3, 0.5, 0.8)
    assert made.corpus.languages == ("en", "fr")
    assert study("model: gpt2", "preset=mwork").layers == ("all", "understanding", "reasoning", "generation")


def test_merging_goes_into_mappings_and_replaces_the_rest():
    assert merged({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2]}, "d": 3}) == {"a": {"b": 1, "c": [2]}, "d": 3}
    assert merged({"a": {"b": 1}}, {"a": "word"}) == {"a": "word"}


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_a_study_for_any_model_and_survives_a_round_trip(study, preset):
    made = study(f"preset: {preset}\nmodel: other/model\ncorpus: {{source: texts, languages: [en, fr]}}")
    assert made.model == ("other/model",)
    assert made.corpus.source == "texts"
    assert study(yaml.safe_dump(made.model_dump(mode="json"))) == made


def test_the_presets_are_those_of_the_documentation():
    assert set(preset_names()) == {
        "kojima",
        "language-arithmetics",
        "lape-paper",
        "mwork",
        "sharing-matters",
        *STUDIES,
    }


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (
            "model: demo\ndetectr: lape",
            2,
            ["'detectr' is unknown", "did you mean 'detector'?", "allowed: preset, name"],
        ),
        (
            "rate: 0.1\ndetector: lapee",
            2,
            ["detector cannot be 'lapee'", "did you mean 'lape'?", "allowed: lape, lap, lave"],
        ),
        (
            "detector:\n  name: parameter_variation\n  mark: least",
            3,
            ["detector.mark cannot be 'least'; did you mean 'largest'? allowed: smallest, largest"],
        ),
        ("detector:\n  - {name: lape,\n     filter_rate: 1.5}", 3, ["detector.filter_rate must be above 0", "got 1.5"]),
        ("detector:\n  name: lap\n  threshold: high", 3, ["detector.threshold must be a number, got 'high'"]),
        ("detector:\n  name: sharing\n  threshold: .inf", 3, ["detector.threshold must be a finite number, got inf"]),
        (
            "detector:\n  name: plnd\n  score: papr",
            3,
            ["detector.score cannot be 'papr'; did you mean 'paper'? allowed: "],
        ),
        ("detector:\n  name: plnd\n  part: q", 3, ["'detector.part' is unknown"]),
        ("detector:\n  name: sharing\n  scope: question", 3, ["scope cannot be 'question'; allowed: input, corpus"]),
        ("detector:\n  name: lape\n  scope: input", 3, ["'detector.scope' is unknown"]),
        ("detector: {threshold: 1}", 1, ["detector.name Field required"]),
        ("detector: 3", 1, ["detector should be a valid dictionary"]),
        (
            "detector:\n  - lape\n  - name: lap\n    thresold: 1",
            4,
            ["'detector.thresold'", "'threshold'?", "allowed: name, thr"],
        ),
        ("corpus:\n  source: demo\n  windw: 3", 3, ["'corpus.windw'", "'window'?"]),
        ("generation:\n  temperatur: 1", 2, ["'generation.temperatur'", "'temperature'?"]),
        ("intervention:\n  - zero\n  - {kind: st, value: 1}", 3, ["'st'", "'set'?", "allowed: zero, set, add, scale"]),
        ("\nintervention: {kind: set}", 2, ["set needs a value: a number, mean, median"]),
        (
            "intervention:\n  kind: set\n  value: men",
            3,
            ["must be a number or one of mean, median, mean-difference, got 'men'"],
        ),
        ("intervention: {kind: zero, value: 1}", 1, ["zero takes no value"]),
        ("intervention: {kind: set, value: 1, strength: 2}", 1, ["strength goes with add"]),
        ("intervention: {kind: set, value: .nan}", 1, ["finite number"]),
        ("corpus:\n  languages:\n   - en\n   - no", 4, ["False", "quotes", "'no' for Norwegian"]),
        ("rate: [0.1,\n 2]", 2, ["less than or equal to 1", "not 2"]),
        ("rate: []", 1, ["at least 1 item"]),
        ("corpus:\n  layout: steam", 2, ["corpus.layout cannot be 'steam'; did you mean 'stream'?"]),
        (
            "corpus:\n  bos: rows",
            2,
            ["corpus.bos cannot be 'rows'; did you mean 'row'? allowed: tokenizer, none, row, c"],
        ),
        ("corpus: {window: 1}", 1, ["corpus.window", "greater than or equal to 2"]),
        ("site: [gate, gate]", 1, ["'gate' twice"]),
        ("seeds: [1, 1]", 1, ["1 twice"]),
        ("preset: kojma", 1, ["'kojma' is unknown", "did you mean 'kojima'?", "sharing-matters"]),
        ("preset: {a: 1}", 1, ["is unknown; allowed: alignment_tuning"]),
        ("rate: 1\nsite: post\nrate: 1", 3, ["'rate' stands in line 1 already"]),
        ("rate: [1", 1, ["plain YAML"]),
        ("- a", 1, ["a study must be a mapping"]),
        ("site: up\nintervention: {kind: set, value: 1}", 1, ["'up' is read only"]),
        (
            "detector: sharing\nintervention: {kind: set, value: mean}",
            1,
            ["types of detector sharing are no languages"],
        ),
        ("evaluate: generation\ngeneration: {prompts: none}", 1, ["set generation.temperature"]),
    ],
)
def test_a_mistake_is_told_with_its_line_what_is_allowed_and_the_closest_name(study, text, line, words):
    with pytest.raises(ValueError, match=f"study.yaml, line {line}: ") as caught:
        study(text)
    assert len(str(caught.value).splitlines()) == 1
    for part in words:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("corpus.windw=3", "--set corpus.windw=3: key 'corpus.windw' is unknown; did you mean 'window'?"),
        ("rate=2", "--set rate=2: rate should be less than or equal to 1"),
        ("rate", "give key=value"),
        ("corpus..window=3", "give key=value"),
        ("rate=[", "no plain YAML value"),
        ("rate=!!python/object/apply:os.getpid []", "no plain YAML value"),
    ],
)
def test_a_mistake_in_an_override_is_told_as_it_was_typed(study, override, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        study("rate: 0.5", override)


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system ['touch {}']", "!!python/name:os.system", "!!python/object/new:os.system ['x']"],
)
def test_yaml_that_would_run_code_is_refused_as_data(study, tmp_path, tag):
    marker = tmp_path / "ran"
    with pytest.raises(ValueError, match="line 2: could not determine a constructor .* nothing is run"):
        study("rate: 0.1\nmodel: " + tag.format(marker))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/b", "..", ".hidden", "", "a\x00b", "a b"])
def test_names_that_could_be_paths_are_refused(name):
    with pytest.raises(ValidationError, match="plain name"):
        Study(name=name)
    with pytest.raises(ValidationError, match="plain name"):
        Study.model_validate({"corpus": {"languages": [name, "en"]}})


def test_a_folder_or_text_in_another_encoding_is_no_study(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        load_study(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: café".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        load_study(latin)
