import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from mi_multilingual.experiments import workers as module
from mi_multilingual.experiments.attempts import ATTEMPTS
from mi_multilingual.experiments.workers import workers

pytestmark = pytest.mark.slow


def count_and_double(trouble, folder, item):
    """Each attempt leaves a file; items in `trouble` get into it so many times first."""
    attempt = len(list(Path(folder).glob(f"{item}.*"))) + 1
    (Path(folder) / f"{item}.{attempt}").touch()
    times, what = trouble.get(item, (0, None))
    if attempt <= times and what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if attempt <= times:
        raise (OSError if what == "fail" else ValueError)("cannot\ndo it")
    return item * 2


def cannot_start():
    raise ValueError("nothing works here")


@pytest.fixture(scope="module")
def cluster():
    ray = module.imported()
    # Workers cannot import this file, so its functions travel with what they are called on.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_every_item_is_done_whatever_happens_to_its_worker(cluster, tmp_path):
    trouble = {2: (1, "die"), 4: (1, "refuse"), 5: (2, "fail"), 7: (ATTEMPTS, "fail")}
    with workers("local", partial(str, tmp_path)) as pool:
        outcomes = {o.index: o for o in pool.run(partial(count_and_double, trouble), range(9))}
        assert sorted(outcomes) == list(range(9))
        assert {i: o.result for i, o in outcomes.items()} == {i: None if i in (4, 7) else i * 2 for i in range(9)}
        assert {i: o.error for i, o in outcomes.items() if o.error} == {
            4: "ValueError: cannot do it",
            7: "OSError: cannot do it",
        }
        assert "count_and_double" in outcomes[7].trace
        attempts = {i: len(list(tmp_path.glob(f"{i}.*"))) for i in range(9)}
        assert attempts == {i: {2: 2, 4: 1, 5: 3, 7: ATTEMPTS}.get(i, 1) for i in range(9)}
        assert next(pool.run(partial(count_and_double, {}), range(100, 200))).result >= 200, "whoever stops listening"
        assert sorted(o.result for o in pool.run(partial(count_and_double, {}), range(10, 14))) == [20, 22, 24, 26]
        assert list(pool.run(partial(count_and_double, {}), [])) == []
    assert cluster.is_initialized(), "a cluster that was there before stays"


def test_workers_that_cannot_start_end_the_run(cluster, monkeypatch):
    monkeypatch.setattr(module, "STARTS", 2)
    with (
        workers("local", cannot_start, n_workers=1) as pool,
        pytest.raises(ChildProcessError, match="no worker can be started.*nothing works here"),
    ):
        list(pool.run(partial(count_and_double, {}), range(3)))


def test_without_ray_one_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'mi_multilingual\[cluster\]'"), workers("local", str):
        pass
