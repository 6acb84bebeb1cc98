"""How often py3langid and lingua name the language of short texts, and at what cost.

    pip install lingua-language-detector==2.1.1
    python benchmarks/language_id.py --parallel pud.tsv.gz

The file has a column of item ids and then one column per language, named by its code. The table goes to standard
output, to be put into LOG.md. lingua is no dependency of the package: it is only compared here.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import pandas as pd
from lingua import IsoCode639_1, Language, LanguageDetectorBuilder

from mi_multilingual import identify_language, load_corpus
from mi_multilingual.evaluation.language_id import identifier

LENGTHS = (20, 50, 100)  # characters
Identify = Callable[[Sequence[str]], list[str]]


def parallel_texts(path: str) -> dict[str, list[str]]:
    """Texts by language; columns by position, since Indonesian shares its code with the usual name of the first."""
    table = pd.read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False)
    return {str(table.iloc[0, c]): table.iloc[1:, c].tolist() for c in range(1, table.shape[1])}


def lingua(languages: Sequence[str], *, fast: bool = False) -> Identify:
    chosen = [Language.from_iso_code_639_1(IsoCode639_1.from_str(k.upper())) for k in languages]
    builder = LanguageDetectorBuilder.from_languages(*chosen)
    detector = (builder.with_low_accuracy_mode() if fast else builder).build()

    def identify(texts: Sequence[str]) -> list[str]:
        found = [detector.detect_language_of(text) for text in texts]
        return [k.iso_code_639_1.name.lower() if k else "" for k in found]

    return identify


def py3langid(languages: Sequence[str]) -> Identify:
    model = identifier(tuple(languages))
    return lambda texts: [model.classify(text)[0] for text in texts]


def rows(name: str, texts: dict[str, list[str]]) -> list[dict[str, object]]:
    """One row per length and identifier: accuracy averaged over languages, the lowest of them, and time per text."""
    languages = list(texts)
    ways: dict[str, Identify] = {
        "script, then py3langid": lambda texts: identify_language(texts, languages),
        "py3langid": py3langid(languages),
        "lingua": lingua(languages),
        "lingua, low accuracy": lingua(languages, fast=True),
    }
    table = []
    for length in LENGTHS:
        cut = {k: [t[:length] for t in documents] for k, documents in texts.items()}
        for way, identify in ways.items():
            identify(["A first call loads the models."])
            started = time.perf_counter()
            found = {k: identify(documents) for k, documents in cut.items()}
            seconds = time.perf_counter() - started
            accuracy = pd.Series({k: found[k].count(k) / len(found[k]) for k in languages})
            table.append(
                {
                    "texts": name,
                    "characters": length,
                    "identifier": way,
                    "accuracy": f"{accuracy.mean():.4f}",
                    "lowest": f"{accuracy.min():.3f} ({accuracy.idxmin()})",
                    "microseconds per text": round(1e6 * seconds / sum(map(len, cut.values()))),
                }
            )
    return table


def markdown(table: list[dict[str, object]]) -> str:
    lines = [list(table[0]), ["---"] * len(table[0]), *(list(row.values()) for row in table)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallel", help="tab-separated parallel texts; the demo corpus is always used")
    args = parser.parse_args()
    demo = {k: list(texts) for k, texts in load_corpus("demo").documents.items()}
    sets = ({args.parallel.split("/")[-1]: parallel_texts(args.parallel)} if args.parallel else {}) | {"demo": demo}
    print(markdown([row for name, texts in sets.items() for row in rows(name, texts)]))


if __name__ == "__main__":
    main()
