"""Processes that kill themselves at a chosen step of their work, which is the same step on every machine."""

import itertools
import os
import signal
from contextlib import contextmanager, suppress

from mi_multilingual import storage
from mi_multilingual.experiments import execution
from mi_multilingual.experiments import store as store_module


@contextmanager
def child(function, *arguments):
    """A forked process that runs the function; it is killed at the end of the block at the latest."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = function(*arguments) or 0
        finally:
            os._exit(code)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def ended(pid):
    """The exit code of a child, negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(step, piece, function, *arguments):
    """In a child: the function, until the process has taken so many steps (see `count_steps`)."""
    count_steps(itertools.count(1), step, piece)
    return function(*arguments)


def count_steps(numbers, last, piece):
    """From now on this process counts its steps, and kills itself at the `last`.

    A step is a piece of a file of the run folder (of so many bytes), its being in place, a cache file half and wholly
    written, and the beginning and the end of a cell.
    """

    def taken():
        if next(numbers) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def put(file, content):
        for i in range(0, len(content), piece):
            file.write(content[i : i + piece])
            file.flush()
            taken()

    def save_file(tensors, path, metadata):
        real_save(tensors, path, metadata)
        content = path.read_bytes()
        for end in (len(content) // 2, len(content)):
            path.write_bytes(content[:end])
            taken()

    real_save, storage.save_file = storage.save_file, save_file
    store_module.put = put
    store_module.sync_folder = between(taken, store_module.sync_folder)
    execution.run_cell = between(taken, execution.run_cell)


def between(taken, function):
    """The function with a step before and after it."""

    def stepping(*arguments):
        taken()
        result = function(*arguments)
        taken()
        return result

    return stepping
