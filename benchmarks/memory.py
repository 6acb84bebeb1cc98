"""Peak memory of recording against the number of tokens, and of loading against the size of the weights."""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer

from mi_multilingual import load_corpus, load_model, record
from mi_multilingual.corpora import Corpus
from mi_multilingual.models.checkpoints import checkpoint_place
from mi_multilingual.models.loading import HookedTransformer

LOADING_GOAL = 1.3
_GIB = {
    "vocab_size": 32000,
    "hidden_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
"""A Llama of 1.3 GB in float32."""


def memory(name: str) -> int:
    """Bytes, from the process's status file: VmRSS are held now, VmHWM at the most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def tables(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Measure and print both; every measurement in a process of its own."""
    return [*_recording_table(sizes), *_loading_table()]


def _recording_table(sizes: Sequence[int]) -> list[dict[str, Any]]:
    print("| tokens recorded | peak memory, MiB | over the first |\n|---|---|---|")
    found: list[dict[str, Any]] = []
    for size in sizes:
        n_tokens, peak = _in_a_process(_recording_peak, size)
        found.append({"what": "recording", "tokens": n_tokens, "peak": peak})
        print(f"| {n_tokens:,} | {peak / 2**20:.0f} | {peak / found[0]['peak']:.3f} |", flush=True)
    return found


def _loading_table() -> list[dict[str, Any]]:
    print("\n| backend | weights, MB | peak of loading / weights | held in the end / weights | goal |")
    print("|---|---|---|---|---|")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        config = transformers.LlamaConfig(**_GIB)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(checkpoint_place("demo")).save_pretrained(folder)
        gc.collect()
        for backend in ("bridge",) if HookedTransformer is None else ("hooked", "bridge"):
            weights, peak, held = _in_a_process(_loading_peak, folder, backend)
            found.append({"what": "loading", "backend": backend, "weights": weights, "peak": peak, "held": held})
            ratios = f"{peak / weights:.3f} | {held / weights:.3f} | <= {LOADING_GOAL}"
            print(f"| {backend} | {weights / 1e6:.0f} | {ratios} |", flush=True)
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
    """Bytes of the weights, and those that the process held more than before, at the most and in the end."""
    load_model("demo", device="cpu", backend=backend)  # what is imported on the way is not the model's
    gc.collect()
    before = memory("VmRSS")
    model: Any = load_model(folder, device="cpu", backend=backend)
    for parameter in model.parameters():
        parameter.sum()  # what lies in a mapped file is not in memory before it is read
    gc.collect()
    owners = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    queue.put((sum(owners.values()), memory("VmHWM") - before, memory("VmRSS") - before))


if __name__ == "__main__":
    tables([10_000])
