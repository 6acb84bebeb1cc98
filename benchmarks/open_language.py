"""How often `identify_open` is right, on real text, on two languages in one text, on random letters.

    python benchmarks/open_language.py --data FOLDER

FOLDER has text/<language>.valid.txt.gz, a paragraph a line, and prompts/*.<language>.txt, a question a line.
"""

import argparse
import gzip
import random
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mi_multilingual as mm

_N = 40
"""Texts per language."""


def _texts(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Kind, language that is right, and text."""
    demo = mm.load_corpus("demo", split="evaluate", max_documents=_N).documents
    for language, sentences in demo.items():
        yield from (("demo, single sentences", language, text) for text in sentences)
    for path in sorted((folder / "text").glob("*.valid.txt.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            paragraphs = [line.strip() for line in file][:_N]
        language = path.name.split(".")[0]
        yield from (("paragraphs", language, text) for text in paragraphs)
        yield from (("first 100 characters of these", language, text[:100]) for text in paragraphs)
    for language, questions in mm.load_questions(folder / "prompts").documents.items():
        yield from (("questions", language, text) for text in questions[:_N])
    for language in ("fr", "ja", "ru", "id"):
        pairs = zip(demo["en"][:10], demo[language][1:11], strict=True)
        yield from (("English and another language", "mixed", f"{one} {other}") for one, other in pairs)
    letters = random.Random(0)
    for _ in range(_N):
        words = ["".join(letters.choices(string.ascii_lowercase, k=letters.randint(1, 8))) for _ in range(10)]
        yield "random letters", "unknown", " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the text")
    rows = list(_texts(parser.parse_args().data))
    found = mm.identify_open([text for *_, text in rows], list(mm.load_corpus("demo").languages))
    for kind in dict.fromkeys(kind for kind, *_ in rows):
        own = [(right, got) for (name, right, _), got in zip(rows, found, strict=True) if name == kind]
        wrong = Counter(f"{right} as {got}" for right, got in own if right != got)
        print(f"{kind}: {len(own)}, right {1 - wrong.total() / len(own):.3f}; {dict(wrong.most_common())}")


if __name__ == "__main__":
    main()
