"""What a cell of the perplexity matrix costs: weights rewritten for a while, or hooks, against the plain model.

    python benchmarks/baking.py

Every ratio is of medians taken in turns in one run. The table goes to standard output, to be put into LOG.md.
"""

import tempfile
from pathlib import Path

import torch
from subjects import random_llama
from timing import alternating

from mi_multilingual import NeuronSet, Reading, load_corpus, load_model, token_rows
from mi_multilingual.evaluation.perplexity import row_losses
from mi_multilingual.models.hooked import HookedModel
from mi_multilingual.patching.changes import Intervention
from mi_multilingual.patching.hooks import steer
from mi_multilingual.patching.weights import baked, rewritten
from mi_multilingual.tokens import TokenRows


def compare(name: str, model: HookedModel, rows: TokenRows, *, density: float = 0.02) -> str:
    """One row of the table: the loss of all rows under an ablation, over the loss without one."""
    shape = (1, model.cfg.n_layers, model.cfg.d_mlp)
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < density
    off = Intervention("zero", NeuronSet(masks, ("en",), "random"))

    def cell() -> None:
        with rewritten(model, [off]):
            row_losses(model, rows)

    def baked_once() -> None:
        with baked(model, off):
            row_losses(model, rows)

    def hooked() -> None:
        with steer(model, off):
            row_losses(model, rows)

    calls = {"plain": lambda: row_losses(model, rows) and None, "cell": cell, "baked": baked_once, "hooked": hooked}
    seconds = alternating(calls)
    ratios = " | ".join(f"{seconds[call] / seconds['plain']:.3f}" for call in ("cell", "baked", "hooked"))
    return f"| {name} | {rows.tokens.numel()} | {int(masks.sum())} | {seconds['plain']:.2f} | {ratios} |"


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| model | tokens | neurons off | plain, s | matrix cell / plain | baked(...) / plain | steer(...) / plain |")
    print("|---|---|---|---|---|---|---|")
    corpus = load_corpus("demo")
    with tempfile.TemporaryDirectory() as folder:
        for name, model, window, n_rows in (
            ("random Llama, 8 layers, d 512", random_llama(Path(folder)), 256, 2),
            ("demo, OPT, 4 layers, d 192", load_model("demo", device="cpu"), 128, 16),
        ):
            rows = token_rows(corpus, "en", model.tokenizer, Reading(window=window))
            first = next(rows.batches(n_rows))
            print(compare(name, model, first), flush=True)


if __name__ == "__main__":
    main()
