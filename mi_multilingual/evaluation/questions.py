"""Open questions and the instruction in which language to answer them."""

from collections.abc import Mapping
from pathlib import Path

from ..corpora import Corpus

INSTRUCTIONS = {
    "en": " Answer in English.",
    "zh": "请用中文回答。",
    "fr": " Veuillez répondre en français.",
    "es": " Por favor responda en español.",
    "vi": " Hãy trả lời bằng tiếng Việt.",
    "id": " Tolong dijawab dalam bahasa Indonesia.",
    "ja": "日本語で答えてください。",
    "de": " Bitte auf Deutsch antworten.",
    "ru": " Пожалуйста, ответьте на русском языке.",
    "tr": " Lütfen Türkçe cevap verin.",
    "th": " กรุณาตอบเป็นภาษาไทย",
    "pt": " Por favor, responda em português.",
    "ko": " 한국어로 대답해 주세요.",
    "it": " Per favore, rispondi in italiano.",
    "pl": " Proszę odpowiedzieć po polsku.",
}
"""Language -> the instruction that follows a question; the first seven are those of Tang et al. 2024, the rest ours."""
STOPS = ("\nQ:", "\nA:")
"""Where an answer ends."""


def open_prompts(questions: Corpus, *, instructions: Mapping[str, str] = INSTRUCTIONS) -> Corpus:
    """Every question with the instruction to answer in its language, as Tang et al. 2024 ask.

    Raises:
        ValueError: a language without an instruction.

    Example:
        >>> import mi_multilingual as mm
        >>> mm.open_prompts(mm.Corpus({"fr": ("Que fait un juge ?",)}, "mine")).documents["fr"]
        ('Q: Que fait un juge ? Veuillez répondre en français.\\nA:',)
    """
    if missing := [k for k in questions.languages if k not in instructions]:
        raise ValueError(
            f"instructions must hold every language of the questions, got none for {missing[0]!r}; "
            "give instructions={language: text}, or take(...) the other languages"
        )
    prompts = {
        k: tuple(f"Q: {question}{instructions[k]}\nA:" for question in asked)
        for k, asked in questions.documents.items()
    }
    return Corpus(prompts, f"{questions.source}, as questions")


def load_questions(folder: Path | str) -> Corpus:
    """Questions from a folder: a line each, in files whose names end in the language, such as `questions.fr.txt`.

    Raises:
        ValueError: a folder without such a file.
    """
    files = sorted(Path(folder).glob("*.*.txt"))
    if not files:
        raise ValueError(f"{folder} must hold files such as questions.fr.txt, got none; give another folder")
    lines = {path.stem.rpartition(".")[2]: path.read_text(encoding="utf-8").splitlines() for path in files}
    return Corpus({k: tuple(line.strip() for line in own if line.strip()) for k, own in lines.items()}, str(folder))
