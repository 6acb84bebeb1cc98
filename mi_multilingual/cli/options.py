"""Options that several commands share: each group is declared once, with what it makes."""

import os
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..corpora import Corpus
    from ..models.hooked import HookedModel
    from ..tokens import Reading

_DTYPES = ("float32", "bfloat16", "float16")
DTYPES_OR_STORED = ("auto", *_DTYPES)
MODEL, _TEXT, _READING = "Model", "Text", "How text becomes rows of tokens"

ModelName = Annotated[str, typer.Argument(help="Hugging Face id, a local checkpoint folder, or 'demo'")]
Device = Annotated[
    str | None, typer.Option(help="such as cpu or cuda:1; a GPU if there is one, by default", rich_help_panel=MODEL)
]
Revision = Annotated[
    str | None, typer.Option(help="branch, tag or commit of a model on the hub", rich_help_panel=MODEL)
]
Bos = Annotated[
    str,
    typer.Option(
        help="special tokens in front of text: what the 'tokenizer' itself puts there, 'none', BOS in every 'row', or "
        "the same with 'count', and counted",
        rich_help_panel=_READING,
    ),
]


def _silenced(quiet: bool) -> bool:
    """Keep the bars of the libraries that load models away too, which are not imported yet."""
    if quiet:
        os.environ.update(TQDM_DISABLE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    return quiet


Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bars", callback=_silenced)]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="can be given several times")]


def taking(**groups: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the arguments and options of `groups` before its own.

    With `name=group` the command gets as `name` what the function `group` makes of the options that it declares.
    """

    def decorator(command: Callable[..., None]) -> Callable[..., None]:
        declared = {name: signature(group).parameters for name, group in groups.items()}

        @wraps(command)
        def run(**values: Any) -> None:
            made = {name: group(**{key: values.pop(key) for key in declared[name]}) for name, group in groups.items()}
            command(**made, **values)

        own = signature(command)
        shared = [parameter for parameters in declared.values() for parameter in parameters.values()]
        kept = [parameter for parameter in own.parameters.values() if parameter.name not in groups]
        # Only parameters by name may stand behind those with a default.
        whole = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in shared + kept]
        run.__signature__ = own.replace(parameters=whole)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in whole}
        return run

    return decorator


def model_asked_for(
    model: ModelName,
    device: Device = None,
    dtype: Annotated[
        str, typer.Option(help=f"of the weights: {', '.join(_DTYPES)}", rich_help_panel=MODEL)
    ] = "float32",
    revision: Revision = None,
    device_map: Annotated[
        str | None,
        typer.Option(help="'auto' spreads it over GPUs, memory and disk, as accelerate does", rich_help_panel=MODEL),
    ] = None,
) -> "Callable[[], HookedModel]":
    """What loads the model, so that mistakes in other options are told first.

    Raises:
        ValueError: an unknown dtype.
    """
    check_dtype(dtype, _DTYPES)

    def load() -> "HookedModel":
        import torch

        from ..models.loading import load_model

        return load_model(model, device=device, dtype=getattr(torch, dtype), revision=revision, device_map=device_map)

    return load


def check_dtype(dtype: str, allowed: Sequence[str]) -> None:
    if dtype not in allowed:
        raise ValueError(f"--dtype must be one of {', '.join(allowed)}, got {dtype!r}")


def texts_asked_for(
    corpus: Annotated[
        str,
        typer.Argument(
            help="folder of <language>.txt, .txt.gz, .jsonl or .parquet files, Hugging Face data set, or 'demo'"
        ),
    ],
    languages: Annotated[str | None, typer.Option(help="only these, e.g. en,fr,ja", rich_help_panel=_TEXT)] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="configuration of a data set, with {language} for the code, e.g. 20231101.{language}",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    column: Annotated[
        str, typer.Option(help="where the text is in .jsonl, .parquet and data sets", rich_help_panel=_TEXT)
    ] = "text",
    max_documents: Annotated[
        int | None, typer.Option(min=1, help="at most so many per language, the first ones", rich_help_panel=_TEXT)
    ] = None,
) -> "Callable[[str | None], Corpus]":
    """From a split, its text."""

    def load(split: str | None) -> "Corpus":
        from ..corpora import load_corpus

        return load_corpus(
            corpus,
            languages=split_names(languages),
            split=split,
            config=config,
            column=column,
            max_documents=max_documents,
        )

    return load


Split = Annotated[
    str | None,
    typer.Option(help="part of the text, e.g. 'identify' or 'evaluate' of the demo", rich_help_panel=_TEXT),
]


def reading_asked_for(
    window: Annotated[
        int | None,
        typer.Option(help="tokens per row; the model's whole context by default", rich_help_panel=_READING),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="'stream': the text of each language cut into windows; 'documents': one per row",
            rich_help_panel=_READING,
        ),
    ] = "stream",
    bos: Bos = "tokenizer",
    max_tokens: Annotated[
        int | None, typer.Option(help="at most so many tokens of text per language", rich_help_panel=_READING)
    ] = None,
    equal_tokens: Annotated[
        bool,
        typer.Option("--equal-tokens", help="cut all languages to the shortest", rich_help_panel=_READING),
    ] = False,
) -> "Reading":
    """How text is read.

    Raises:
        ValueError: as `Reading`.
    """
    from ..tokens import Reading

    return Reading(window, layout, bos, max_tokens, equal_tokens)


def split_names(names: str | None) -> tuple[str, ...] | None:
    """The names between commas."""
    return tuple(name.strip() for name in names.split(",")) if names else None


def pairs(given: Sequence[str] | None) -> dict[str, str]:
    """KEY=VALUE as a mapping.

    Raises:
        ValueError: one without an equals sign, or a key given twice.
    """
    found: dict[str, str] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not (key and equals) or key in found:
            raise ValueError(f"--set must be KEY=VALUE, each KEY once, got {text!r}")
        found[key] = value
    return found
