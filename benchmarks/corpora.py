"""Text that is larger than the memory it may take: resident memory, seconds and tokens at every step, in one process.

    OMP_NUM_THREADS=1 python benchmarks/corpora.py                 # 1 GB of text in two languages
    OMP_NUM_THREADS=1 python benchmarks/corpora.py --megabytes 200

The text is made of the demo's sentences, the model is the demo's. The table goes to standard output. Resident memory
counts everything, the libraries included (`libraries` is the row of what they take).
"""

import argparse
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mi_multilingual as mm
from mi_multilingual.evaluation.perplexity import corpus_rows, row_losses
from mi_multilingual.tokens import language_rows

LANGUAGES = ("en", "ru")
LIMIT = 1.5e9
N_SHARDS = 5_000  # a shard has every so manieth batch of the whole text


def write_text(path: Path, language: str, n_bytes: int) -> None:
    """Documents of 1 to 20 sentences, about 700 bytes, each ending in its own number."""
    sentences, drawn = mm.load_corpus("demo").documents[language], random.Random(0)
    with path.open("wb") as file:
        for i in range(n_bytes):
            text = " ".join(drawn.choices(sentences, k=min(20, 1 + int(drawn.expovariate(0.2)))))
            file.write(f"{text} {language} {i}\n".encode())
            if file.tell() >= n_bytes:
                break


def peak() -> float:
    """Bytes of resident memory at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def step(name: str, work: Callable[[], object]) -> object:
    started = time.perf_counter()
    result = work()
    seconds, text = time.perf_counter() - started, f"{result:,}" if isinstance(result, int) else ""
    print(f"{name:60} {seconds:9.1f} {peak() / 1e6:9.0f} {text:>14}", flush=True)
    return result


def n_kept() -> int:
    """Bytes of text whose tokens are on disk, to a piece of 1 MiB."""
    return sum(1 for _ in Path(os.environ["MI_MULTILINGUAL_CACHE"]).glob("tokens/*/*/*.safetensors")) * 2**20


def main(folder: Path, megabytes: int) -> None:
    os.environ["MI_MULTILINGUAL_CACHE"] = str(folder / "cache")
    print(f"{'step':60} {'seconds':>9} {'peak MB':>9} {'counted':>14}")
    step("libraries, model", lambda: globals().__setitem__("model", mm.load_model("demo", device="cpu")))
    model = globals()["model"]
    for language in LANGUAGES:
        path = folder / f"{language}.txt"
        step(f"write {language}", lambda p=path, k=language: write_text(p, k, megabytes * 10**6 // len(LANGUAGES)))
    corpus = step("load_corpus, shared documents looked for", lambda: mm.load_corpus(folder))
    step("fingerprint", lambda: corpus.fingerprint)
    few = mm.Reading(max_tokens=20_000, equal_tokens=True)
    step(
        "record 20,000 tokens per language",
        lambda: int(mm.record(model, corpus, reading=few, progress=False).n_tokens.sum()),
    )
    step("... bytes of text tokenised for it", n_kept)
    for name in ("tokenise everything", "the same again"):
        step(name, lambda: sum(own.n_tokens for own in language_rows(model, corpus, mm.Reading(), progress=False)))
    for layout in ("stream", "documents"):
        reading = mm.Reading(layout=layout)
        one = step(
            f"record, {layout}, all rows, 1 batch in {N_SHARDS:,}",
            lambda r=reading: mm.record(model, corpus, reading=r, shard=(0, N_SHARDS), progress=False),
        )
        print(f"    tokens recorded: {one.n_tokens.tolist()}")
        rows = step(f"perplexity, {layout}, all rows made", lambda r=reading: corpus_rows(model, corpus, r))
        few_rows = {k: own.pick(own.n_used().argsort()[:16]) for k, own in rows.items()}
        step(f"perplexity, {layout}, 16 rows", lambda f=few_rows: [row_losses(model, own) for own in f.values()])
    print(f"\npeak {peak() / 1e9:.2f} GB, to stay below {LIMIT / 1e9} GB")
    if peak() >= LIMIT:
        sys.exit("too much memory")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    with tempfile.TemporaryDirectory() as place:
        main(Path(place), parser.parse_args().megabytes)
