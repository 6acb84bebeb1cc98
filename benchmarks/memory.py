"""Peak memory of recording against the number of tokens, and of loading against the size of the weights."""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from subjects import BACKENDS
from timing import Row
from transformers import AutoTokenizer

from mi_multilingual import load_corpus, load_model, record
from mi_multilingual.corpora import Corpus
from mi_multilingual.models.checkpoints import checkpoint_place

LOADING_GOAL = 1.3
_GROWTH = 1.05
_GIB = {
    "vocab_size": 16000,
    "hidden_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "intermediate_size": 2816,
}
"""A Llama of 0.4 GB in float32."""


def memory(name: str) -> int:
    """Bytes, from the process's status file: VmHWM at the most, RssAnon now and its own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def rows(sizes: Sequence[int]) -> list[Row]:
    """Both, every measurement in a process of its own; seconds are not measured."""
    return [*_recording_rows(sizes), *_loading_rows()]


def _row(model: str, case: str, way: str, ratio: float, goal: float | None) -> Row:
    return Row("memory", model, "float32", case, way, 0.0, ratio, ratio, ratio, goal, None, 0.0, None)


def _recording_rows(sizes: Sequence[int]) -> list[Row]:
    found = [_in_a_process(_recording_peak, size) for size in sizes]
    least = found[0][1]
    case = f"peak memory over that with {found[0][0]:,} tokens, {least / 2**20:.0f} MiB"
    return [_row("demo", case, f"record {n:,} tokens, {BACKENDS[0]}", peak / least, _GROWTH) for n, peak in found[1:]]


def _loading_rows() -> list[Row]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in (torch.float32, torch.bfloat16):
            config = transformers.LlamaConfig(**_GIB)
            transformers.LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
            AutoTokenizer.from_pretrained(checkpoint_place("demo")).save_pretrained(folder)
            gc.collect()
            stored = f"stored in {str(dtype).removeprefix('torch.')}"
            for backend in BACKENDS:
                weights, peak, _ = _in_a_process(_loading_peak, folder, backend)
                case = f"peak of its own memory over the weights, {stored}"
                model = f"Llama of {weights / 1e9:.1f} GB"
                found.append(_row(model, case, f"load_model, {backend}", peak / weights, LOADING_GOAL))
    return found


def _in_a_process(work: Callable[..., None], *arguments: Any) -> tuple[int, ...]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=work, args=(*arguments, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def _recording_peak(n_tokens: int, queue: multiprocessing.Queue) -> None:
    """Tokens counted, and the most bytes the process held."""
    model = load_model("demo", device="cpu")
    sentences = load_corpus("demo").documents["en"]
    length = sum(map(len, model.tokenizer(list(sentences), add_special_tokens=False)["input_ids"]))
    corpus = Corpus({"en": tuple(s for _ in range(-(-n_tokens // length)) for s in sentences)}, "demo, repeated")
    stats = record(model, corpus, progress=False)
    queue.put((int(stats.n_tokens), memory("VmHWM")))


def _loading_peak(folder: str, backend: str, queue: multiprocessing.Queue) -> None:
    """Bytes of the weights, and those that the process held more than before, at the most and in the end.

    Its own memory: pages of the mapped file go where memory is short.
    """
    load_model("demo", device="cpu", backend=backend)  # what is imported on the way is not the model's
    gc.collect()
    before, held, done = memory("RssAnon"), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            held[0] = max(held[0], memory("RssAnon"))

    watching = threading.Thread(target=watch)
    watching.start()
    model: Any = load_model(folder, device="cpu", backend=backend)
    for parameter in model.parameters():
        parameter.sum()  # what lies in a mapped file is not in memory before it is read
    done.set()
    watching.join()
    owners = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    queue.put((sum(owners.values()), held[0] - before, memory("RssAnon") - before))
