"""The formulas of docs/scaling.md against what is measured here: parameters, bytes, and seconds of a recording.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py

Seconds are predicted from the operations per token and the rate at which this machine multiplies matrices of the
model's shape, measured in turns with the recording. The tables go to standard output.
"""

import gc
import multiprocessing
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from memory import memory
from subjects import random_llama
from timing import alternating

from mi_multilingual import Reading, load_corpus, load_model, record, token_rows
from mi_multilingual.corpora import Corpus
from mi_multilingual.evidence.activations import TENSORS
from mi_multilingual.models.hooked import HookedModel

FIELDS = 5  # active, total, active_total, total_squares and maximum, 8 bytes each
LLAMAS = {
    "1B": SimpleNamespace(n_layers=16, d_model=2048, d_mlp=8192, d_kv=512, d_vocab=128256),
    "7B": SimpleNamespace(n_layers=32, d_model=4096, d_mlp=11008, d_kv=4096, d_vocab=32000),
    "13B": SimpleNamespace(n_layers=40, d_model=5120, d_mlp=13824, d_kv=5120, d_vocab=32000),
    "70B": SimpleNamespace(n_layers=80, d_model=8192, d_mlp=28672, d_kv=1024, d_vocab=32000),
}


def block_weights(s: SimpleNamespace) -> int:
    """Numbers in the matrices of all blocks, which is half their operations per token."""
    attention = 2 * s.d_model * s.d_model + 2 * s.d_model * s.d_kv
    return s.n_layers * (attention + (3 if s.gated else 2) * s.d_model * s.d_mlp)


def parameters(s: SimpleNamespace) -> int:
    """All but biases and norms, embedding and unembedding counted apart as TransformerLens keeps them."""
    return block_weights(s) + 2 * s.d_vocab * s.d_model


def operations(s: SimpleNamespace, window: int) -> int:
    """Floating-point operations per token without logits: matrices, then attention over the whole window."""
    return 2 * block_weights(s) + 4 * s.n_layers * window * s.d_model


def statistics_bytes(s: SimpleNamespace, n_languages: int) -> int:
    return s.n_layers * s.d_mlp * n_languages * 8 * FIELDS


def shape_of(model: HookedModel) -> SimpleNamespace:
    cfg = model.cfg
    d_kv = (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head
    names = ("n_layers", "d_model", "d_mlp", "d_vocab")
    return SimpleNamespace(**{n: getattr(cfg, n) for n in names}, d_kv=d_kv, gated=bool(cfg.gated_mlp))


def table_of_llamas(window: int = 2048, n_languages: int = 10, n_tokens: float = 1e9, rate: float = 2e14) -> None:
    print(f"{n_languages} languages, {n_tokens:.0e} tokens in all, window {window}, {rate:.0e} operations per second\n")
    heading("model", "parameters", "bfloat16", "float32", "statistics", "GFLOP per token", "GPU hours")
    for name, shape in LLAMAS.items():
        s = SimpleNamespace(**vars(shape), gated=True)
        n, flop = parameters(s), operations(s, window)
        sizes = f"{n / 1e9:.2f} G | {2 * n / 1e9:.1f} GB | {4 * n / 1e9:.1f} GB"
        held = f"{statistics_bytes(s, n_languages) / 1e6:.0f} MB"
        print(f"| {name} | {sizes} | {held} | {flop / 1e9:.1f} | {n_tokens * flop / rate / 3600:.1f} |")


def heading(*columns: str) -> None:
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def resident(folder: str, queue: multiprocessing.Queue) -> None:
    """Bytes that a process holds more with the model than without, at the most and in the end."""
    gc.collect()
    before = memory("VmRSS")
    model = load_model(folder, device="cpu")
    gc.collect()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    queue.put((weights, memory("VmRSS") - before, memory("VmHWM") - before))


def check(name: str, model: HookedModel, folder: str, corpus: Corpus, window: int) -> None:
    """One row of each check."""
    s = shape_of(model)
    counted = sum(p.numel() for n, p in model.named_parameters() if n.split(".")[-1].startswith(("W_", "_W_")))
    reading = Reading(window=window)
    stats = record(model, corpus, reading=reading, progress=False)
    held = sum(getattr(stats, n).nbytes for n in TENSORS if n != "n_tokens")
    n_tokens = int(sum(token_rows(corpus, k, model.tokenizer, reading).tokens.numel() for k in corpus.languages))
    left, right = torch.randn(4096, s.d_model), torch.randn(s.d_model, s.d_mlp)
    calls = {
        "matrix": lambda: torch.matmul(left, right) is None,
        "record": lambda: record(model, corpus, reading=reading, progress=False) is None,
    }
    seconds = alternating(calls)
    rate = 2 * left.numel() * s.d_mlp / seconds["matrix"]
    predicted = n_tokens * operations(s, window) / rate
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=resident, args=(folder, queue))
    process.start()
    weights, after, most = queue.get()
    process.join()
    cells = (
        name,
        f"{counted / 1e6:.2f} / {parameters(s) / 1e6:.2f} M",
        f"{held / 1e6:.2f} / {statistics_bytes(s, len(stats.languages)) / 1e6:.2f} MB",
        f"{weights / 1e6:.0f} / {after / 1e6:.0f} / {most / 1e6:.0f} MB",
        str(n_tokens),
        f"{rate / 1e9:.1f} G/s",
        f"{predicted:.2f} / {seconds['record']:.2f} s",
    )
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    table_of_llamas()
    print(f"\nMeasured, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    heading(
        "model",
        "matrices: counted / formula",
        "statistics: held / formula",
        "weights / process / peak while loading",
        "tokens",
        "rate of a matrix product",
        "recording: predicted / measured",
    )
    demo = load_corpus("demo").take(["en", "fr"])
    check("demo, OPT, 4 layers, d 192", load_model("demo", device="cpu"), "demo", demo, 128)
    part = Corpus({"en": demo.documents["en"][:40]}, "part of the demo")
    with tempfile.TemporaryDirectory() as folder:
        check("random Llama, 8 layers, d 512", random_llama(Path(folder)), folder, part, 256)


if __name__ == "__main__":
    main()
