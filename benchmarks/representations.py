"""Time and memory of representations of parallel sentences, and of every table of them, on the demo model.

    python benchmarks/representations.py --parallel pud.tsv.gz

The table goes to standard output, to be put into LOG.md. Resident memory counts everything, the libraries included.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch

import mi_multilingual as mm

TABLES = (mm.sentence_similarity, mm.dominance, mm.retrieval, mm.mexa, mm.cka)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parallel", required=True, help="sentences in several languages, as `load_corpus` reads them")
    options = parser.parse_args()
    corpus = mm.load_corpus(options.parallel)
    model = mm.load_model("demo")
    rows: list[dict[str, Any]] = []

    def timed(name: str, work: Callable[[], Any]) -> Any:
        wall, processor = time.monotonic(), time.process_time()
        result = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        rows.append(
            {"what": name, "s": time.monotonic() - wall, "processor, s": time.process_time() - processor, "GB": peak}
        )
        return result

    found = timed("record_representations", lambda: mm.record_representations(model, corpus, progress=False))
    for table in TABLES:
        timed(table.__name__, lambda table=table: table(found))
    done = pd.DataFrame(rows)
    total = {"what": "all", "s": done.s.sum(), "processor, s": done["processor, s"].sum(), "GB": done.GB.max()}
    print(f"{found}, {torch.get_num_threads()} threads")
    print(pd.concat([done, pd.DataFrame([total])]).round(2).to_markdown(index=False))


if __name__ == "__main__":
    main()
