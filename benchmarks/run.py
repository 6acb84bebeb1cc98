"""What recording costs: time against plain forward passes, memory against the number of tokens.

    make bench

Every ratio is of medians taken in turns in one run. The table goes to standard output, to be put into LOG.md.
"""

import argparse
import gc
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import transformers
from transformers import AutoTokenizer

from mi_multilingual import Reading, load_corpus, load_model, record, site_of
from mi_multilingual.corpora import Corpus
from mi_multilingual.models.hooked import run_trunk
from mi_multilingual.tokens import token_rows

ROUNDS, WARM_UP = 7, 1


def alternating(calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each call; the calls take turns, so that a slow moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(WARM_UP + ROUNDS):
        for name, call in calls.items():
            gc.collect()
            started = time.perf_counter()
            call()
            if i >= WARM_UP:
                times[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in times.items()}


def random_llama(folder: Path):
    """A random Llama of 8 layers, width 512 and 1376 neurons per layer, with the demo's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parents[1] / "mi_multilingual" / "demo" / "model")
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        intermediate_size=1376,
        max_position_embeddings=256,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(folder, device="cpu")


def compare(name: str, model, window: int, n_rows: int, batch_size: int) -> str:
    """One row of the table: recording over the forward pass without logits, and over caching all MLP activations."""
    reading = Reading(window=window)
    corpus = Corpus({k: v * 20 for k, v in load_corpus("demo").take(["en"]).documents.items()}, "demo, repeated")
    tokenizer = model.tokenizer
    rows = token_rows(corpus, "en", tokenizer, reading)
    text = tokenizer.decode(rows.tokens[:n_rows, 1:].flatten())
    small = Corpus({"en": (text,)}, "part of it")

    def batches():
        """The text is turned into tokens in every measured call: whoever runs the model has to do it."""
        return token_rows(small, "en", tokenizer, reading).batches(batch_size)

    post = [site_of(model, "post").hook_name(layer) for layer in range(model.cfg.n_layers)]

    @torch.no_grad()
    def forward() -> None:
        for batch in batches():
            run_trunk(model, batch.tokens, hooks=[])

    @torch.no_grad()
    def cached() -> None:
        for batch in batches():
            model.run_with_cache(batch.tokens, names_filter=post)

    seconds = alternating(
        {
            "forward": forward,
            "record": lambda: record(model, small, reading=reading, batch_size=batch_size, progress=False) and None,
            "cache": cached,
        }
    )
    n_tokens = sum(batch.n_tokens for batch in batches())
    return (
        f"| {name} | {n_tokens} | {seconds['forward']:.2f} | {seconds['record'] / seconds['forward']:.3f} "
        f"| {seconds['record'] / seconds['cache']:.3f} |"
    )


def peak_memory(n_tokens: int, queue: multiprocessing.Queue) -> None:
    """Peak resident memory, MiB, of a process that records so many tokens."""
    model = load_model("demo", device="cpu")
    sentences = load_corpus("demo").documents["en"]
    length = sum(len(ids) for ids in model.tokenizer(list(sentences), add_special_tokens=False)["input_ids"])
    corpus = Corpus({"en": tuple(s for _ in range(-(-n_tokens // length)) for s in sentences)}, "demo, repeated")
    stats = record(model, corpus, progress=False)
    queue.put((int(stats.n_tokens), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def memory_table(sizes: list[int]) -> None:
    context = multiprocessing.get_context("spawn")
    print("\n| tokens recorded | peak memory, MiB | over the first |\n|---|---|---|")
    first = None
    for size in sizes:
        queue = context.Queue()
        process = context.Process(target=peak_memory, args=(size, queue))
        process.start()
        n_tokens, peak = queue.get()
        process.join()
        first = first or peak
        print(f"| {n_tokens:,} | {peak:.0f} | {peak / first:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[10_000, 1_000_000])
    sizes = parser.parse_args().tokens
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| model | tokens | forward without logits, s | record / forward | record / cache of all hook_post |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        print(compare("random Llama, 8 layers, d 512", random_llama(Path(folder)), 256, 16, 4), flush=True)
    print(compare("demo, OPT, 4 layers, d 192", load_model("demo", device="cpu"), 128, 160, 32), flush=True)
    memory_table(sizes)


if __name__ == "__main__":
    main()
