import errno
import json
import os
import random
import resource
import signal
import subprocess
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from kills import child, ended, killed_at
from mi_multilingual.experiments import store as store_module
from mi_multilingual.experiments.execution import Attempt
from mi_multilingual.experiments.fingerprints import hashed
from mi_multilingual.experiments.store import Store, Unwritable
from mi_multilingual.experiments.sweep import complete

KILLS = 50
PIECE = 200  # bytes of a file that are written at once, so that kills fall into the middle of files
NOBODY = 65534


@dataclass(frozen=True)
class Stub:
    """A cell whose result is made from its number."""

    number: int

    @property
    def key(self):
        return hashed(self.number)

    def table(self):
        values = np.random.default_rng(self.number).normal(size=(1 + self.number % 3, 2))
        return pd.DataFrame(values, columns=["change", "low"]).assign(cell=self.key, evaluated="en")


def note(log, word, key):
    """One line in one write, so that a kill leaves no half of it."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{word} {key}\n".encode())
    os.close(handle)


def notes(log):
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def work(folder, cells, log):
    """What every process of a sweep does, with stubs for the measurements."""

    def runner(todo):
        for cell in todo:
            note(log, "compute", cell.key)
            yield Attempt(cell, cell.table(), 0.5)
            note(log, "written", cell.key)

    store = Store(folder)
    with store.locked():
        store.sweep_up()
        complete(store, cells, runner, progress=False)


def computed_in_vain(log):
    """Cells that were computed although their result was complete before."""
    written, again = set(), []
    for word, key in notes(log):
        if word == "compute" and key in written:
            again.append(key)
        elif word == "written":
            written.add(key)
    return again


@pytest.mark.slow
def test_after_fifty_kills_the_table_is_that_of_an_undisturbed_run_and_nothing_was_done_twice(tmp_path):
    cells = [Stub(i) for i in range(300)]
    keys = [cell.key for cell in cells]
    folder, log = tmp_path / "killed", tmp_path / "log"
    when, in_write = random.Random(0), 0
    for _ in range(KILLS):
        with child(killed_at, when.randint(1, 60), PIECE, work, folder, cells, log) as pid:
            assert ended(pid) == -signal.SIGKILL, "all cells were done before the last kill"
        in_write += bool(list(folder.glob("results/.*.partial")))
    assert KILLS // 5 <= in_write < KILLS
    done = [cell for cell in cells if cell.key in Store(folder).results()]
    assert len(done) > 20
    few = done + cells[-20:]
    few_keys = [cell.key for cell in few]
    work(folder, few, log)
    work(tmp_path / "undisturbed", few, tmp_path / "other log")
    assert_frame_equal(Store(folder).table(few_keys), Store(tmp_path / "undisturbed").table(few_keys))
    assert computed_in_vain(log) == []
    assert Store(folder).check_results(keys)[1] == []
    assert not list(folder.rglob("*.partial"))


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def damage_empty(path):
    path.write_bytes(b"")


def damage_zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def damage_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_truncate, damage_empty, damage_zeros, damage_one_bit])
def test_a_damaged_file_is_set_aside_and_its_cell_alone_runs_again(tmp_path, damage):
    cells, folder, log = [Stub(i) for i in range(5)], tmp_path / "run", tmp_path / "log"
    keys = [cell.key for cell in cells]
    work(folder, cells, log)
    before = Store(folder).table(keys)
    path = Store(folder).results()[keys[2]]
    damage(path)
    assert Store(folder).check_results(keys) == (set(keys) - {keys[2]}, [path.name])
    assert set(Store(folder).table(keys).cell) == set(keys) - {keys[2]}
    log.unlink()
    work(folder, cells, log)
    assert [key for word, key in notes(log) if word == "compute"] == [keys[2]]
    assert_frame_equal(Store(folder).table(keys), before)
    assert (folder / "damaged" / path.name).exists()


def stop_at_full_disk(folder, cells, log, limit=None):
    """Exit code 3 where the run ended with the one-sentence error."""
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        work(folder, cells, log)
    except Unwritable as error:
        note(folder.parent / "error", "said", str(error).replace(" ", "_"))
        return 3
    return 0


def test_a_file_beyond_the_limit_ends_the_run_in_one_sentence_and_loses_nothing(tmp_path):
    cells, folder, log = [Stub(i) for i in range(6)], tmp_path / "run", tmp_path / "log"
    keys = [cell.key for cell in cells]
    work(folder, cells[:3], log)
    before = Store(folder).table(keys)
    with child(stop_at_full_disk, folder, cells, log, 1000) as pid:
        assert ended(pid) == 3
    assert "larger_than_allowed" in notes(tmp_path / "error")[0][1]
    assert_frame_equal(Store(folder).table(keys), before)
    assert not list(folder.rglob("*.partial"))
    work(folder, cells, log)
    assert len(set(Store(folder).table(keys).cell)) == 6
    assert computed_in_vain(log) == []


def test_no_space_in_the_middle_of_a_file_leaves_no_half_of_it(tmp_path, monkeypatch):
    def full(file, content):
        file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    work(tmp_path / "run", [Stub(0)], tmp_path / "log")
    monkeypatch.setattr(store_module, "put", full)
    with pytest.raises(Unwritable, match="the disk is full; free some space; what is done is safe, and .* resume"):
        work(tmp_path / "run", [Stub(0), Stub(1)], tmp_path / "log")
    assert len(list((tmp_path / "run" / "results").iterdir())) == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 128 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", place], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a small file system needs more rights; the limit of the file size is tested instead")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_and_one_that_turns_read_only_lose_nothing(small_disk, tmp_path):
    cells, folder, log = [Stub(i) for i in range(60)], small_disk / "run", tmp_path / "log"
    keys = [cell.key for cell in cells]
    with pytest.raises(Unwritable, match="the disk is full"):
        work(folder, cells, log)
    done = Store(folder).table(keys)
    assert 0 < done.cell.nunique() < 60
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(Unwritable, match="read-only"):
        work(folder, cells, log)
    assert_frame_equal(Store(folder).table(keys), done)
    subprocess.run(["mount", "-o", "remount,rw,size=4m", small_disk], check=True)
    work(folder, cells, log)
    work(tmp_path / "undisturbed", cells, tmp_path / "other log")
    assert_frame_equal(Store(folder).table(keys), Store(tmp_path / "undisturbed").table(keys))
    assert computed_in_vain(log) == []


def as_nobody(folder, cells, log):
    """Root may write anywhere, so it becomes somebody who may not."""
    if os.geteuid() == 0:
        os.setuid(NOBODY)
    try:
        work(folder, cells, log)
    except Unwritable as error:
        return 4 if "you may not write there" in str(error) else 5
    return 0


def test_a_folder_one_may_not_write_to_is_told_and_can_still_be_read(tmp_path):
    cells, folder = [Stub(i) for i in range(3)], tmp_path / "run"
    work(folder, cells[:2], tmp_path / "log")
    folder.chmod(0o555)
    (folder / "lock").chmod(0o444)
    try:
        with child(as_nobody, folder, cells, tmp_path / "log") as pid:
            assert ended(pid) == 4
        assert len(set(Store(folder).table([cell.key for cell in cells]).cell)) == 2
        assert not Store(folder).is_held()
    finally:
        folder.chmod(0o755)


def hold(folder, ready):
    with Store(folder).locked():
        os.write(ready, b"x")
        signal.pause()


def test_a_second_process_is_told_who_holds_the_folder_and_a_killed_one_lets_go(tmp_path):
    folder = tmp_path / "run"
    reader, writer = os.pipe()
    with child(hold, folder, writer) as pid:
        os.read(reader, 1)
        assert Store(folder).is_held()
        with (
            pytest.raises(ValueError, match=rf"in use by process {pid} on .* since \d{{4}}-.*; wait for it"),
            Store(folder).locked(),
        ):
            pass
    os.close(reader)
    os.close(writer)
    with Store(folder).locked():
        assert json.loads((folder / "lock").read_bytes())["pid"] == os.getpid()
    assert not Store(folder).is_held()


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "results/../../out", "", ".", "link/file"])
def test_paths_that_leave_the_folder_are_refused(tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out of the run folder"):
        Store(folder).path(name)


def test_results_behind_a_link_out_of_the_folder_are_not_written(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "results").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="leads out of the run folder"):
        Store(folder).add_result("0" * 32, Stub(0).table())
    assert not list((tmp_path / "elsewhere").iterdir())


def test_results_keep_the_order_of_the_cells_and_the_seconds_beside_them(tmp_path):
    cells = [Stub(i) for i in (4, 1, 3)]
    work(tmp_path / "run", cells[::-1], tmp_path / "log")
    store, keys = Store(tmp_path / "run"), [cell.key for cell in cells]
    assert list(dict.fromkeys(store.table(keys).cell)) == keys
    assert store.seconds(keys) == [0.5] * 3
    assert_frame_equal(store.table(keys), pd.concat([cell.table() for cell in cells], ignore_index=True))
    read_by_others = pd.read_parquet(tmp_path / "run" / "results")
    assert len(read_by_others) == len(store.table(keys))


def test_a_failed_cell_is_noted_and_forgotten_when_it_succeeds(tmp_path):
    store, cell = Store(tmp_path / "run"), Stub(7)
    complete(store, [cell], lambda todo: iter([Attempt(cell, None, 0.1, "ValueError: no", "trace")]), progress=False)
    assert store.failures() == {cell.key: {"error": "ValueError: no", "trace": "trace"}}
    work(tmp_path / "run", [cell], tmp_path / "log")
    assert store.failures() == {}


def test_reading_a_folder_that_is_no_sweep_is_told(tmp_path):
    with pytest.raises(ValueError, match="must hold a sweep, got no cells.json"):
        Store(tmp_path).read_json("cells.json")
    (tmp_path / "cells.json").write_text("[1, ")
    with pytest.raises(ValueError, match="is damaged"):
        Store(tmp_path).read_json("cells.json")
