import functools
import json
import re
import runpy
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch

import checkpoints
import mi_multilingual as mm
from mi_multilingual import Intervention, NeuronSet, export, load, load_model, save, steer
from mi_multilingual.cli import main
from mi_multilingual.models.hooked import fingerprint

pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install mi_multilingual[harness]")
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from mi_multilingual.evaluation import harness
from mi_multilingual.evaluation.harness import harness_scores

COMMON = """
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/items.jsonl}}
test_split: test
"""
TASKS = {
    "tiny_choices": """
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "tiny_written": """
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "tiny_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{prompt}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path_factory):
    """The harness reads the definitions of all its tasks, which takes seconds; and caches data sets at home."""
    monkeypatch.setattr(harness, "TaskManager", functools.partial(TaskManager, include_defaults=False))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"prompt": s[:-8], "choices": [s[-8:], " boat", " thé"], "answer": i % 3}
        for sentences in checkpoints.SENTENCES.values()
        for i, s in enumerate(sentences)
    ]
    (folder / "items.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}{COMMON}{text}".replace("FOLDER", str(folder)))
    return folder


@pytest.fixture(scope="module", params=["opt", "llama-grouped", "qwen2"])
def checkpoint(request, tmp_path_factory):
    return checkpoints.checkpoint(request.param, tmp_path_factory.mktemp("m") / "source")


@pytest.fixture(scope="module")
def neurons(checkpoint):
    model = load_model(checkpoint, device="cpu")
    masks = torch.rand(2, model.cfg.n_layers, model.cfg.d_mlp, generator=torch.Generator().manual_seed(0)) < 0.5
    found = NeuronSet(masks, ("en", "fr"), "test", model="tiny", model_fingerprint=fingerprint(model))
    save(found, checkpoint.parent / "neurons.safetensors")
    return checkpoint.parent / "neurons.safetensors"


def own_scores(folder, tasks):
    """What the harness' own `hf` type gives, in the same table."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    rows = []
    # By itself it puts BOS twice before a whole text: its own, and the one that the tokenizer adds.
    for names, options in ((["tiny_choices", "tiny_written"], {}), (["tiny_text"], {"add_bos_token": False})):
        arguments = {"pretrained": str(folder), "device": "cpu", **options}
        results = simple_evaluate("hf", arguments, names, batch_size=8, task_manager=manager, log_samples=False)
        rows += harness.score_rows(results)
    return pd.DataFrame(rows, columns=["task", "metric", "filter", "value", "stderr", "n"])


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["llama-grouped"], indirect=True)
def test_every_task_gives_what_the_exported_checkpoint_gives(checkpoint, neurons, tasks, tmp_path):
    zero = Intervention("zero", load(neurons)["fr"])
    exported = own_scores(export(checkpoint, zero, folder=tmp_path / "edited"), tasks)
    ours = harness_scores(checkpoint, list(TASKS), neurons=neurons, groups=["fr"], include_path=tasks)
    pd.testing.assert_frame_equal(ours, exported, check_exact=True)
    assert list(ours.task) == list(TASKS)
    assert (ours.n == 9).all()
    plain = harness_scores(checkpoint, list(TASKS), include_path=tasks)
    pd.testing.assert_frame_equal(plain, own_scores(checkpoint, tasks), check_exact=True)
    bits = [t.set_index("task").value["tiny_text"] for t in (plain, ours)]
    assert abs(bits[0] - bits[1]) > 1e-3
    short = harness_scores(checkpoint, ["tiny_text"], neurons=neurons, include_path=tasks, limit=2)
    assert list(short.n) == [2]


REQUESTS = [("The dog", " sleeps"), ("The dog", " sleeps under the tree"), ("Le chien", " dort"), ("", "The boat")]


def scored(lm):
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(REQUESTS)]
    return lm.loglikelihood(requests, disable_tqdm=True)


def made(pretrained, **arguments):
    """The model type as the command makes it, from a string."""
    text = ",".join(f"{k}={v}" for k, v in {"pretrained": pretrained, **arguments}.items())
    return get_model("mi_multilingual").create_from_arg_string(text, {"batch_size": 4, "device": "cpu"})


@pytest.mark.parametrize("checkpoint", ["opt", "llama-grouped"], indirect=True)
@pytest.mark.parametrize(
    ("kind", "value", "site"), [("zero", None, "gate"), ("scale", 1.7, "gate"), ("set", 2.0, "post")]
)
def test_requests_have_the_very_numbers_of_the_exported_checkpoint(checkpoint, neurons, kind, value, site, tmp_path):
    given = {"neurons": neurons, "intervention": kind, "groups": "en+fr", "site": site}
    lm = made(checkpoint, **given, **({} if value is None else {"value": value}))
    folder = export(checkpoint, Intervention(kind, load(neurons), value, site), folder=tmp_path / "edited")
    exported = get_model("hf")(pretrained=str(folder), device="cpu", batch_size=4)
    assert scored(lm) == scored(exported)
    plain = get_model("hf")(pretrained=str(checkpoint), device="cpu", batch_size=4)
    assert max(abs(a - b) for (a, _), (b, _) in zip(scored(lm), scored(plain), strict=True)) > 0.01


@pytest.mark.parametrize(("kind", "site"), [("add", "gate"), ("set", "gate"), ("set", "post")])
def test_what_weights_cannot_carry_acts_by_hooks(checkpoint, neurons, kind, site):
    """At a gate, or without an output bias (Qwen2); in the others set at post is written, with the same result."""
    lm = made(checkpoint, neurons=neurons, intervention=kind, groups="fr", value=2, site=site)
    model = load_model(checkpoint, device="cpu")
    with steer(model, Intervention(kind, load(neurons)["fr"], 2.0, site)):
        steered = likelihood(model)
    assert of_tokens(lm) == pytest.approx(steered, abs=1e-4)
    assert abs(likelihood(model) - steered) > 0.01


@pytest.mark.parametrize("checkpoint", ["llama-grouped"], indirect=True)
@pytest.mark.parametrize("kind", harness.RECORDED)
def test_recorded_values_raise_a_language_while_another_is_off(checkpoint, neurons, corpus, kind, tmp_path):
    model, found = load_model(checkpoint, device="cpu"), load(neurons)
    corpus, reading = corpus.take(["en", "fr"]), mm.Reading(layout="documents")
    if kind == "set_to_median":
        recorded, strength = mm.record_texts(model, corpus, site="post", reading=reading, progress=False)["mean"], {}
        raised = Intervention("set", found["fr"], mm.medians(recorded)[..., 1], "post")
    else:
        recorded, strength = mm.record(model, corpus, reading=reading, progress=False), {"value": 3}
        raised = getattr(mm, kind)(found["fr"], recorded, "fr", strength=3.0)
    save(recorded, tmp_path / "recorded.safetensors")
    given = {"neurons": neurons, "intervention": kind, "groups": "fr", "evidence": tmp_path / "recorded.safetensors"}
    alone, both = (of_tokens(made(checkpoint, **given, **strength, **off)) for off in ({}, {"off": "en"}))
    with steer(model, raised):
        assert alone == pytest.approx(likelihood(model), abs=1e-4)
    off = replace(found["en"], masks=found["en"].masks & ~found["fr"].masks)
    with steer(model, Intervention("zero", off), raised):
        assert both == pytest.approx(likelihood(model), abs=1e-4)
    assert abs(alone - both) > 1e-3
    assert abs(alone - likelihood(model)) > 1e-3


IDS = [5, 40, 80, 120, 33, 7]


def likelihood(model):
    with torch.no_grad():
        table = model(torch.tensor([IDS]), return_type="logits")[0, :-1].log_softmax(-1)
    return table.gather(-1, torch.tensor(IDS[1:])[:, None]).sum().item()


def of_tokens(lm):
    return lm._loglikelihood_tokens([(None, IDS[:1], IDS[1:])], disable_tqdm=True)[0][0]


def test_generation_is_steered_too(tmp_path):
    source = checkpoints.checkpoint("llama", tmp_path / "source")
    model = load_model(source, device="cpu")
    everything = NeuronSet(torch.ones(1, 2, checkpoints.D_MLP, dtype=torch.bool), ("x",), "test")
    save(everything, tmp_path / "n.safetensors")
    request = Instance("generate_until", {}, ("The dog", {"until": ["\n"], "max_gen_toks": 8}), 0)
    plain = made(source).generate_until([request], disable_tqdm=True)
    by_hooks = made(source, neurons=tmp_path / "n.safetensors", intervention="add", value=3, site="gate")
    in_weights = made(source, neurons=tmp_path / "n.safetensors", intervention="zero")
    assert by_hooks.generate_until([request], disable_tqdm=True) != plain
    assert in_weights.generate_until([request], disable_tqdm=True) != plain
    ids = prompt = by_hooks.tokenizer("The dog")["input_ids"]
    with steer(model, Intervention("add", everything, 3.0, "gate")), torch.no_grad():
        for _ in range(8):
            ids = [*ids, model(torch.tensor([ids]), return_type="logits")[0, -1].argmax().item()]
    text = by_hooks.tokenizer.decode(ids[len(prompt) :])
    assert by_hooks.generate_until([request], disable_tqdm=True) == [text.split("\n")[0].split("<s>")[0]]


@pytest.mark.parametrize("checkpoint", ["opt"], indirect=True)
def test_bad_arguments_are_told_before_anything_runs(checkpoint, neurons, tasks, tmp_path, monkeypatch):
    found = load(neurons)
    save(replace(found, model_fingerprint="another"), tmp_path / "other.safetensors")
    save(replace(found, masks=torch.zeros_like(found.masks)), tmp_path / "empty.safetensors")
    save(replace(found, masks=found.masks[:, :1]), tmp_path / "shallow.safetensors")
    monkeypatch.setattr(harness.IntervenedLM, "loglikelihood", None)
    for match, options in {
        "kind must be one of zero, .* got 'delete'": {"neurons": neurons, "intervention": "delete"},
        "zero takes no value": {"neurons": neurons, "value": 1.0},
        "'set' with value None": {"neurons": neurons, "intervention": "set"},
        "site must be one of gate, post, got 'up'": {"neurons": neurons, "site": "up"},
        "no neurons for 'de'; this set has en, fr": {"neurons": neurons, "groups": ["de"]},
        "other weights": {"neurons": tmp_path / "other.safetensors"},
        "has no neurons": {"neurons": tmp_path / "empty.safetensors"},
        "load the model the set was made for": {"neurons": tmp_path / "shallow.safetensors"},
        "evidence must be given for set_to_mean, .* got None for 'add_mean'": {
            "neurons": neurons,
            "intervention": "add_mean",
        },
        "for nothing else, got 'stats' for 'set'": {"neurons": neurons, "intervention": "set", "evidence": "stats"},
        "groups must be one language for 'add_mean', got en, fr": {
            "neurons": neurons,
            "intervention": "add_mean",
            "evidence": "stats",
        },
        "no neurons for 'tlh'": {"neurons": neurons, "off": ["tlh"]},
        "no neurons for intervention 'zero'": {"intervention": "zero"},
        "no neurons for intervention None, groups 'fr'": {"groups": ["fr"]},
    }.items():
        with pytest.raises(ValueError, match=match):
            harness_scores(checkpoint, ["tiny_choices"], include_path=tasks, **options)
    with pytest.raises(ValueError, match="the harness has no task 'tiny_chioces'"):
        harness_scores(checkpoint, ["tiny_chioces"], include_path=tasks)
    with pytest.raises(ValueError, match="tasks must be one or more, got none"):
        harness_scores(checkpoint, [], include_path=tasks)


def test_the_dtype_is_applied_after_the_change(checkpoint, neurons):
    lm = made(checkpoint, neurons=neurons, dtype="bfloat16")
    assert lm.model.dtype == torch.bfloat16
    assert scored(lm) != scored(made(checkpoint, neurons=neurons))


def test_the_command_prints_and_writes_the_table(tmp_path, tasks, capsys):
    source = checkpoints.checkpoint("opt", tmp_path / "source")
    masks = torch.ones(2, checkpoints.N_LAYERS, checkpoints.D_MLP, dtype=torch.bool)
    save(NeuronSet(masks, ("en", "fr"), "test"), tmp_path / "n.safetensors")
    out = tmp_path / "run" / "scores.parquet"
    command = [
        "evaluate",
        str(source),
        "--tasks",
        "tiny_choices,tiny_text",
        "--include-path",
        str(tasks),
        "--out",
        str(out),
    ]
    assert main([*command, "--neurons", str(tmp_path / "n.safetensors"), "--groups", "fr", "--limit", "3"]) == 0
    table = pd.read_parquet(out)
    assert list(table.columns) == ["task", "metric", "filter", "value", "stderr", "n"]
    assert list(table.task) == ["tiny_choices", "tiny_text"]
    printed = capsys.readouterr().out
    assert "tiny_text" in printed
    assert f"{table.value[1]:.4f}" in printed
    assert main([*command, "--groups", "fr"]) == 1
    assert "error: no neurons for intervention" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_harness_own_command_knows_the_model_type(tmp_path, tasks, monkeypatch, capsys):
    source = checkpoints.checkpoint("opt", tmp_path / "source")
    masks = torch.ones(1, checkpoints.N_LAYERS, checkpoints.D_MLP, dtype=torch.bool)
    save(NeuronSet(masks, ("fr",), "test"), tmp_path / "n.safetensors")
    arguments = f"pretrained={source},neurons={tmp_path / 'n.safetensors'},intervention=zero"
    command = ["lm_eval", "--model", "mi_multilingual", "--model_args", arguments, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, "--tasks", "tiny_text", "--include_path", str(tasks)])
    monkeypatch.setattr("lm_eval.tasks.TaskManager", harness.TaskManager)
    runpy.run_module("mi_multilingual.evaluation.harness", run_name="__main__")
    printed = capsys.readouterr().out
    wanted = harness_scores(source, ["tiny_text"], neurons=tmp_path / "n.safetensors", include_path=tasks)
    assert re.search(rf"tiny_text.*\|{wanted.value[0]:.3f}", printed)


def test_without_the_harness_the_message_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    for name in [n for n in sys.modules if n == "lm_eval" or n.startswith("lm_eval.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "mi_multilingual.evaluation.harness")
    assert main(["evaluate", "demo", "--tasks", "x", "--out", str(tmp_path / "t.parquet")]) == 1
    assert "pip install 'mi_multilingual[harness]'" in capsys.readouterr().err


@pytest.mark.slow
def test_tasks_are_asked_in_the_chat_template(tasks, tmp_path, capsys):
    source = checkpoints.chatting("llama-grouped", tmp_path / "source")
    names = ["tiny_choices", "tiny_written"]
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    arguments = {"pretrained": str(source), "device": "cpu"}
    options = {"batch_size": 8, "task_manager": manager, "log_samples": False, "apply_chat_template": True}
    own = list(harness.score_rows(simple_evaluate("hf", arguments, names, **options)))
    ours = harness_scores(source, names, include_path=tasks, chat=True)
    assert [tuple(row) for row in ours.itertuples(index=False)] == own
    out = tmp_path / "scores.parquet"
    command = ["evaluate", str(source), "--tasks", "tiny_choices", "--include-path", str(tasks), "--out", str(out)]
    assert main([*command, "--chat"]) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(out), ours[ours.task == "tiny_choices"].reset_index(drop=True))
    silent = checkpoints.checkpoint("opt", tmp_path / "silent")
    command[1] = str(silent)
    capsys.readouterr()
    assert main([*command, "--chat"]) == 1
    assert "tokenizer without a chat template" in capsys.readouterr().err


@pytest.mark.parametrize("front", ["{{ bos_token }}", ""])
def test_special_tokens_of_a_chat_are_those_of_its_template(front, tmp_path):
    lm = made(checkpoints.checkpoint("llama", tmp_path / "source"))
    lm.tokenizer.chat_template = front + "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    text = lm.apply_chat_template([{"role": "user", "content": "The dog"}])
    expected = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert lm.tok_encode(text) == expected
    assert lm.tok_batch_encode([text])[0].tolist() == [expected]
    assert expected.count(lm.tokenizer.bos_token_id) == bool(front)
