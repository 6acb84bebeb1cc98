"""The same study in one process and on a cluster: a pretended one in any order of events, and Ray with accidents."""

import os
import random
import shutil
import signal
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import checkpoints
from mi_multilingual.cli import main
from mi_multilingual.detectors.table import Setting
from mi_multilingual.evidence.activations import TENSORS
from mi_multilingual.experiments import cluster as module
from mi_multilingual.experiments import workers as workers_module
from mi_multilingual.experiments.cluster import on_ray
from mi_multilingual.experiments.config import Study
from mi_multilingual.experiments.execution import serial
from mi_multilingual.experiments.loading import checked_study
from mi_multilingual.experiments.recordings import needs
from mi_multilingual.experiments.store import Store
from mi_multilingual.experiments.sweep import planned, results, resume, run, study_tables
from mi_multilingual.experiments.workers import Outcome, Pool
from mi_multilingual.storage import load
from mi_multilingual.studies.table import STUDIES, StudyRow
from mi_multilingual.tokens import TOKENS_PER_BATCH

WINDOW = 8


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with a model and texts."""
    folder = tmp_path_factory.mktemp("inputs")
    checkpoints.checkpoint("llama-grouped", folder / "model")
    (folder / "texts").mkdir()
    for language, sentences in checkpoints.SENTENCES.items():
        (folder / "texts" / f"{language}.txt").write_text("\n".join(sentences * 3), encoding="utf-8")
    return folder


def study_of(folder, **changes):
    settings = {
        "model": str(folder / "model"),
        "corpus": {"source": str(folder / "texts"), "layout": "documents", "window": WINDOW},
        "detector": [{"name": "lape", "activation_bar_ratio": 0.5}, "average_precision"],
        "rate": 0.25,
        "intervention": ["zero", {"kind": "set", "value": "mean"}],
        "seeds": [],
    }
    return Study.model_validate(settings | changes)


class Pretended(Pool):
    """A pool whose outcomes come in any order, worked out in this process."""

    def __init__(self, state, seed):
        self.state, self.random = state, random.Random(seed)

    def run(self, function, items):
        outcomes = []
        for index, item in enumerate(items):
            try:
                outcomes.append(Outcome(index, item, function(self.state, item)))
            except ValueError as error:
                outcomes.append(Outcome(index, item, error=f"ValueError: {error}", trace="trace"))
        self.random.shuffle(outcomes)
        yield from outcomes


@pytest.fixture
def pretend(monkeypatch):
    def of(seed):
        @contextmanager
        def workers(address, make, *, n_workers=None):
            yield Pretended(make(), seed)

        monkeypatch.setattr(module, "workers", workers)

    return of


def recorded(folder):
    """Statistics in the cache of a run folder."""
    cells = planned(Store(folder))
    [recording] = {r for c in cells for r in needs(c) if r.kind == "activations"}
    return load(folder / "cache" / f"activations-{recording.key}.safetensors")


@pytest.mark.parametrize("seed", range(2))
def test_in_any_order_of_events_the_numbers_are_those_of_one_process(pretend, places, tmp_path, monkeypatch, seed):
    monkeypatch.setitem(TOKENS_PER_BATCH, "statistics", 2 * WINDOW)
    pretend(seed)
    study = study_of(places)
    assert run(study, tmp_path / "one", progress=False).complete
    assert run(study, tmp_path / "many", runner=on_ray("local"), progress=False).complete
    one, many = (recorded(tmp_path / name) for name in ("one", "many"))
    assert all(torch.equal(getattr(many, name), getattr(one, name)) for name in TENSORS), "sums to the last bit"
    assert many.header() == one.header()
    pd.testing.assert_frame_equal(results(tmp_path / "many"), results(tmp_path / "one"), check_exact=True)


def test_whole_studies_in_any_order_are_those_of_one_process(pretend, places, tmp_path, monkeypatch):
    def counted(given):
        if given.settings["n"] == 13:
            raise ValueError("n must not be 13, got 13")
        return {"sizes": pd.DataFrame({"n": given.settings["n"], "tokens": given.stats.n_tokens.numpy()})}

    monkeypatch.setitem(STUDIES, "toy", StudyRow(counted, ("sizes",), {"n": Setting(1, "a number", 1, 20)}))
    corpus = {"source": str(places / "texts"), "layout": "documents", "window": WINDOW}
    given = {"study": "toy", "model": str(places / "model"), "corpus": corpus, "settings": {"n": [3, 13, 5]}}
    pretend(1)
    for name, runner in (("one", None), ("many", on_ray("local"))):
        progress = run(checked_study(given), tmp_path / name, runner=runner, progress=False)
        assert (progress.done, len(progress.failed)) == (2, 1)
    one, many = (study_tables(tmp_path / name)["sizes"] for name in ("one", "many"))
    pd.testing.assert_frame_equal(one, many)
    assert one.n.unique().tolist() == [3, 5]


def spoiled(places, folder):
    """The model with a weight that is not a number."""
    shutil.copytree(places / "model", folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.gate_proj.weight"][3, 5] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("fault", ["too little text", "weights"])
def test_cells_whose_recording_fails_say_why_as_in_one_process(pretend, places, tmp_path, fault):
    pretend(0)
    study = study_of(places, detector=["lape", "average_precision"], intervention="zero")
    changes = {"corpus": study.corpus.model_copy(update={"layout": "stream", "window": 32, "identify_documents": 1})}
    if fault == "weights":
        changes = {"model": (spoiled(places, tmp_path / "model"),)}
    study = study.model_copy(update=changes)
    one, many = (
        run(study, tmp_path / name, runner=runner, progress=False).failed
        for name, runner in (("one", None), ("many", on_ray("local")))
    )
    assert len(one)
    pd.testing.assert_frame_equal(many, one)
    assert results(tmp_path / "many").equals(results(tmp_path / "one")), "other cells are done"


def test_cells_whose_recording_loses_a_batch_are_listed(pretend, places, tmp_path, monkeypatch):
    def broken(context, item):
        raise ValueError("broken")

    monkeypatch.setattr(module, "one_batch", broken)
    pretend(0)
    progress = run(study_of(places), tmp_path, runner=on_ray("local"), progress=False)
    needing = {c.key for c in planned(Store(tmp_path)) if c.detector == "lape" or c.intervention.kind == "set"}
    assert set(progress.failed.cell) == needing
    assert set(progress.failed.error) == {"ValueError: broken"}
    assert progress.done == progress.n_cells - len(needing)


def once(folder, name):
    """Whether nobody came here before."""
    try:
        (Path(folder) / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def one_batch_with_accident(folder, context, item):
    from mi_multilingual.experiments.cluster import one_batch

    if item[1].language == "fr" and once(folder, "batch"):
        raise OSError("a moment's weakness")
    return one_batch(context, item)


def rows_with_accidents(folder, context, item):
    """The worker of one cell is killed in its midst, and another cell never succeeds."""
    from mi_multilingual.experiments.cluster import cell_rows

    cell = item[0]
    if (cell.detector, cell.intervention.kind, cell.group) == ("lape", "set", "ja"):
        raise ValueError("cannot be done")
    found = cell_rows(context, item)
    if cell.group == "fr" and once(folder, "cell"):
        os.kill(os.getpid(), signal.SIGKILL)
    return found


@pytest.fixture
def ray():
    package = workers_module.imported()
    # Workers cannot import this file, so its functions travel with what they are called on.
    package.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    package.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield package
    package.shutdown()


@pytest.fixture
def two_nodes():
    """A cluster of two nodes of one core each: the package ray, the cluster, and the node that may go."""
    package = workers_module.imported()
    from ray.cluster_utils import Cluster

    package.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    size = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    # A node that is gone is noticed after five seconds, not after fifteen.
    checks = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}
    checks["worker_niceness"] = 0  # else a busy machine hardly lets them start
    cluster = Cluster(initialize_head=True, head_node_args={**size, "_system_config": checks})
    other = cluster.add_node(**size)
    package.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    yield package, cluster, other
    package.shutdown()
    cluster.shutdown()


def batch_in_the_midst(folder, doomed, context, item):
    """The second batch on the doomed node says so, and waits for the node's end; the other node leaves it two."""
    import ray

    from mi_multilingual.experiments.cluster import one_batch

    if ray.get_runtime_context().get_node_id() != doomed:
        wait_for(Path(folder) / "second")
    elif not once(folder, "first"):
        (Path(folder) / "second").touch()
        time.sleep(60)
    return one_batch(context, item)


def wait_for(path):
    """Return when the file is there, after a minute at the latest."""
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.1)


def remove_when_there(path, cluster, node):
    wait_for(path)
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.slow
def test_a_node_that_is_lost_while_it_records_changes_no_number(places, tmp_path, monkeypatch, two_nodes):
    package, cluster, other = two_nodes
    assert len([node for node in package.nodes() if node["Alive"]]) == 2
    shutil.copytree(places / "model", tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for language, sentences in checkpoints.SENTENCES.items():
        text = "\n".join(sentences * 250)  # several batches of every language
        (tmp_path / "texts" / f"{language}.txt").write_text(text, encoding="utf-8")
    study = study_of(tmp_path, detector={"name": "lape", "activation_bar_ratio": 0.5})
    run(study, tmp_path / "one", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(module, "one_batch", partial(batch_in_the_midst, str(tmp_path), other.node_id))
        killer = threading.Thread(target=remove_when_there, args=(tmp_path / "second", cluster, other), daemon=True)
        killer.start()
        progress = run(study, tmp_path / "many", runner=on_ray("auto"), progress=False)
        killer.join(timeout=30)
    assert (tmp_path / "second").exists()
    assert len([node for node in package.nodes() if node["Alive"]]) == 1, "the node went before the end"
    assert progress.complete
    assert progress.failed.empty
    one, many = (recorded(tmp_path / name) for name in ("one", "many"))
    assert all(torch.equal(getattr(many, name), getattr(one, name)) for name in TENSORS)
    pd.testing.assert_frame_equal(results(tmp_path / "many"), results(tmp_path / "one"), check_exact=True)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_on_ray_with_accidents_and_gone_on_with_the_numbers_are_those_of_one_process(places, tmp_path, monkeypatch):
    study = study_of(places)
    run(study, tmp_path / "one", progress=False)
    with monkeypatch.context() as patch:
        for name, accident in (("one_batch", one_batch_with_accident), ("cell_rows", rows_with_accidents)):
            patch.setattr(module, name, partial(accident, str(tmp_path)))
        progress = run(study, tmp_path / "many", runner=on_ray("local"), progress=False)
    assert (tmp_path / "batch").exists()
    assert (tmp_path / "cell").exists()
    assert set(progress.failed.error) == {"ValueError: cannot be done"}
    assert len(progress.failed) == progress.n_cells - progress.done == 1
    assert resume(tmp_path / "many", runner=on_ray("local", n_workers=1), progress=False).complete
    one, many = (recorded(tmp_path / name) for name in ("one", "many"))
    assert all(torch.equal(getattr(many, name), getattr(one, name)) for name in TENSORS)
    pd.testing.assert_frame_equal(results(tmp_path / "many"), results(tmp_path / "one"), check_exact=True)
    assert Store(tmp_path / "many").failures() == {}


def test_the_command_hands_the_address_to_the_runner(places, tmp_path, monkeypatch, capsys):
    addresses = []

    def told(address):
        addresses.append(address)
        return serial

    monkeypatch.setattr(module, "on_ray", told)
    lines = [f"model: {places / 'model'}", "rate: 0.25", "seeds: []", "ablated: fr"]
    lines += [f"corpus: {{source: {places / 'texts'}, window: {WINDOW}}}"]
    (tmp_path / "study.yaml").write_text("\n".join(lines), encoding="utf-8")
    run_folder = str(tmp_path / "run")
    assert main(["run", str(tmp_path / "study.yaml"), "--out", run_folder, "--ray", "local", "--quiet"]) == 0
    assert main(["resume", run_folder, "--ray", "head:6379", "--quiet"]) == 0
    assert main(["resume", run_folder, "--quiet"]) == 0
    assert addresses == ["local", "head:6379"]
    assert "1 of 1 cells done" in capsys.readouterr().out
