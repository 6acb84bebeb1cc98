"""Any task of the lm-evaluation-harness under an intervention.

The harness has no way to find model types of other packages, so its own command does not know this one; the same
command with everything it can do, and this model type beside its own, is

    python -m mi_multilingual.evaluation.harness --model mi_multilingual \\
        --model_args pretrained=...,neurons=fr.safetensors,intervention=zero --tasks ...

and in Python it is enough to import this module.
"""

import copy
import importlib
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils_hf import get_dtype
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise ImportError(
        f"tasks of the lm-evaluation-harness need lm-eval ({error}); pip install 'mi_multilingual[harness]'"
    ) from error

from ..chat import check_template
from ..detectors.average_precision import medians
from ..evidence.activations import ActivationStats
from ..evidence.texts import TextActivations
from ..models.checkpoints import hugging_face, place_and_options
from ..models.loading import load_model
from ..models.placed import is_placed
from ..neurons import NeuronSet
from ..patching.changes import RAISING, Intervention
from ..patching.export import edit_checkpoint
from ..patching.hooks import steer
from ..patching.weights import NotWritableError
from ..storage import load
from ..tokens import check_bos, prefix_ids

_MODEL_TYPE = "mi_multilingual"
_MEDIAN = "set_to_median"
RECORDED = (*RAISING, _MEDIAN)
"""Interventions whose values, a number for each neuron, come from recorded evidence."""


class IntervenedLM(HFLM):
    """The harness' own Hugging Face model with an intervention in its weights, or else in hooks.

    Requests, batches and generation are the harness' own, so with an intervention that weights can carry every number
    is that of its `hf` type on the checkpoint that `export` writes. Special tokens alone are read as everywhere in this
    package: those of `bos` stand in front, once, and none behind. The `hf` type keeps those behind a prompt, and begins
    a whole text (`loglikelihood_rolling`) with BOS and then with what the tokenizer adds. In a chat template
    (`--apply_chat_template`) there are those that the template writes.
    """

    in_chat = False
    """Whether a chat template was asked for."""

    def __init__(
        self,
        pretrained: str,
        neurons: str | None = None,
        intervention: str | None = None,
        groups: str | None = None,
        value: float | int | None = None,
        site: str | None = None,
        evidence: str | None = None,
        off: str | None = None,
        bos: str = "tokenizer",
        dtype: Any = "auto",
        **options: Any,
    ) -> None:
        """Load and change the model.

        Args:
            pretrained: a Hugging Face id, a checkpoint folder, a GGUF file, "demo" or "smollm2".
            neurons: file of a NeuronSet; without one the model is as it is.
            intervention: zero (by default); set, add or scale, which need `value`, one number; or set_to_mean,
                set_to_active_mean, add_mean, add_mean_difference (need a recording in `evidence`, and take `value` as
                the strength, 1 by default) and set_to_median (needs recorded texts in `evidence`).
            groups: whose neurons, those of all groups by default; several as in fr+de. What evidence gives the values
                for is one language.
            site: gate (by default) or post; with `evidence` it is that of the recording.
            evidence: file of `ActivationStats`, or of `TextActivations` for the median.
            off: groups whose neurons are off besides, such as the source's while a target is raised; those that are
                raised stay so.
            bos: special tokens before every text (see `Reading`).
            dtype: of the weights; "auto" as they are stored.
            options: those of the harness' `hf` type, such as batch_size, device, max_length, revision.

        Raises:
            ValueError: before anything runs: as `Intervention`, an unknown group, an empty set, or neurons of another
                model.
        """
        check_bos(bos)
        changes = named_interventions(neurons, intervention, groups, value, site, evidence, off)
        options.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        source, loading = _source(pretrained, options["device"])
        super().__init__(source, **{**loading, **options})
        self.prefix = prefix_ids(self.tokenizer, bos)
        if changes:
            self.apply(changes)
        if dtype != "auto":
            self._model = self._model.to(get_dtype(dtype))

    def apply(self, changes: Sequence[Intervention]) -> None:
        """Change the loaded model for good."""
        try:
            edit_checkpoint(self._model, self.tokenizer, changes)
        except NotWritableError:
            bridge = load_model(
                self._model,
                tokenizer=copy.deepcopy(self.tokenizer),
                backend="bridge",
                device=None if is_placed(self._model) else str(self._model.device),
                dtype=self._model.dtype,
            )
            hooks = ExitStack()
            hooks.enter_context(steer(bridge, *changes))
            # They come off with this object, and at the end of the program while that still can be done.
            weakref.finalize(self, hooks.close)
            # The bridge's hooks are in the Hugging Face model, which generates and scores as any other.
            self._model = bridge.original_model

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation in the chat template.

        Raises:
            ValueError: the tokenizer has none.
        """
        check_template(self.tokenizer)
        self.in_chat = True
        return super().apply_chat_template(chat_history, add_generation_prompt)

    @property
    def prefix_token_id(self) -> int:
        """The token before text without context: the one in front of every text, else what the harness takes."""
        own = self.prefix and self.custom_prefix_token_id is None
        return self.prefix[-1] if own else super().prefix_token_id

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **options: Any,
    ) -> list[int]:
        """The text's ids, with the special tokens in front unless it begins with them, and none behind."""
        front = self.tokenizer.decode(self.prefix)
        asked = self.add_bos_token is not False and not self.in_chat and not string.startswith(front)
        if add_special_tokens is not None:
            asked = add_special_tokens
        ids = super().tok_encode(string, add_special_tokens=False)
        return [*(self.prefix if asked else ()), *ids][-(left_truncate_len or 0) :]

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Int[Tensor, "text pos"], Int[Tensor, "text pos"]]:
        """The ids of every text as `tok_encode` gives them, padded, and where they are not padding."""
        whole = [self.tok_encode(s)[: self.tokenizer.model_max_length if truncation else None] for s in strings]
        rows = [torch.tensor(ids[-(left_truncate_len or 0) :], dtype=torch.int64) for ids in whole]
        if n_cut := sum(len(ids) > len(row) for ids, row in zip(whole, rows, strict=True)):
            warnings.warn(f"{n_cut} prompts were cut at the left to {left_truncate_len} tokens", stacklevel=2)
        sides: dict[str, Any] = {"batch_first": True, "padding_side": padding_side}
        ids = pad_sequence(rows, padding_value=self.tokenizer.pad_token_id, **sides)
        return ids, pad_sequence([torch.ones_like(row) for row in rows], **sides)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, after `prefix_token_id`, which must not stand in the text as well."""
        given, self.add_bos_token = self.add_bos_token, False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        finally:
            self.add_bos_token = given


def _source(pretrained: str, device: str) -> tuple[Any, dict[str, Any]]:
    """What the harness loads, and how: weights as stored, for they are changed in their own precision, and neurons are
    compared with the weights they are of. A GGUF file is loaded here, as the plain model it then is."""
    place, found = place_and_options(pretrained)
    if "gguf_file" not in found:
        return place, {"dtype": "auto", "use_safetensors": True}
    model, tokenizer, _ = hugging_face(pretrained, None, "auto")
    return model.to(device), {"tokenizer": tokenizer}


def named_interventions(
    neurons: str | None,
    intervention: str | None,
    groups: str | None,
    value: float | int | None,
    site: str | None,
    evidence: str | None,
    off: str | None,
) -> list[Intervention]:
    """The interventions that strings describe, as of `IntervenedLM`; none without neurons."""
    if neurons is None:
        if (intervention, groups, value, evidence, off) != (None,) * 5:
            raise ValueError(
                f"no neurons for intervention {intervention!r}, groups {groups!r}, value {value!r}, evidence "
                f"{evidence!r}, off {off!r}; give neurons=FILE, or leave these out"
            )
        return []
    known = load(neurons, NeuronSet)
    chosen = known.take(groups.split("+")) if groups else known
    kind = intervention or "zero"
    if (kind in RECORDED) != (evidence is not None):
        raise ValueError(
            f"evidence must be given for {', '.join(RECORDED)} and for nothing else, got {evidence!r} for {kind!r}"
        )
    if evidence is None:
        first = Intervention(kind, chosen, value, site or "gate")
    else:
        first = _recorded_intervention(kind, chosen, evidence, value, site)
    if off is None:
        return [first]
    others = known.take(off.split("+"))
    others = replace(others, masks=others.masks & ~chosen.union())
    return [Intervention("zero", others), first] if others.masks.any() else [first]


def _recorded_intervention(
    kind: str, neurons: NeuronSet, evidence: str, strength: float | int | None, site: str | None
) -> Intervention:
    """The intervention whose values come from a file of evidence."""
    if len(neurons.groups) != 1:
        raise ValueError(f"groups must be one language for {kind!r}, got {', '.join(neurons.groups)}; name it")
    [language] = neurons.groups
    recorded = load(evidence, TextActivations if kind == _MEDIAN else ActivationStats)
    if site not in (None, recorded.site):
        raise ValueError(f"site must be that of the evidence, {recorded.site!r}, got {site!r}; leave it out")
    if kind != _MEDIAN:
        return RAISING[kind](neurons, recorded, language, strength=1.0 if strength is None else float(strength))
    if strength is not None:
        raise ValueError(f"value must be left out for {kind!r}, got {strength}")
    if language not in recorded.languages:
        raise ValueError(f"evidence must cover {language!r}, got {', '.join(recorded.languages)}; record it")
    return Intervention("set", neurons, medians(recorded)[..., recorded.languages.index(language)], recorded.site)


def harness_scores(
    model: str | Path,
    tasks: Sequence[str],
    *,
    neurons: str | Path | None = None,
    intervention: str | None = None,
    groups: Sequence[str] | None = None,
    value: float | int | None = None,
    site: str | None = None,
    evidence: str | Path | None = None,
    off: Sequence[str] | None = None,
    chat: bool = False,
    bos: str = "tokenizer",
    include_path: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    **options: Any,
) -> pd.DataFrame:
    """What tasks of the lm-evaluation-harness give, under an intervention if neurons are given.

    Args:
        model: a Hugging Face id, a checkpoint folder, a GGUF file, "demo" or "smollm2".
        tasks: names of tasks, groups or tags that the harness or `include_path` has.
        neurons: file of a NeuronSet; intervention, groups, value, site, evidence and off say what happens to them, as
            in `IntervenedLM`.
        chat: ask in the tokenizer's chat template.
        bos: special tokens before every text (see `Reading`); a chat template writes them itself.
        include_path: folder with task definitions (YAML) of your own.
        limit: at most this many items per task, to try things out.
        options: of `IntervenedLM`, such as dtype, revision and device.

    Returns:
        one row per task and metric: task, metric, filter (what the harness does to answers first), value, stderr (NaN
        where the harness has none), n (items; missing for groups).

    Raises:
        ValueError: before anything runs: an unknown task, with `chat` a tokenizer without a template, and as
            `IntervenedLM`.
    """
    if not tasks:
        raise ValueError("tasks must be one or more, got none; name at least one")
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for task in tasks:
        if not manager.match_tasks([task]):
            raise ValueError(f"the harness has no task {task!r}; see `lm_eval ls tasks`, or give include_path")
    arguments: dict[str, Any] = {"pretrained": str(model), **options}
    arguments |= {"neurons": None if neurons is None else str(neurons), "groups": "+".join(groups) if groups else None}
    arguments |= {"evidence": None if evidence is None else str(evidence), "off": "+".join(off) if off else None}
    arguments |= {"intervention": intervention, "value": value, "site": site, "bos": bos}
    how: dict[str, Any] = {"batch_size": batch_size, "limit": limit, "task_manager": manager}
    how |= {"apply_chat_template": chat, "log_samples": False}
    results = simple_evaluate(_MODEL_TYPE, arguments, list(tasks), **how)
    if results is None:
        raise ValueError("the harness gave no results in this process; run it in one process")
    return pd.DataFrame(score_rows(results), columns=["task", "metric", "filter", "value", "stderr", "n"])


def score_rows(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str, float, float, float]]:
    """The numbers of the harness' nested answer, whose keys are "metric,filter" and "metric_stderr,filter"."""
    for task, scores in results["results"].items():
        n = results.get("n-samples", {}).get(task, {}).get("effective", float("nan"))
        for key, score in scores.items():
            metric, comma, name = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            stderr = scores.get(f"{metric}_stderr,{name}")
            yield task, metric, name, float(score), float(stderr) if _is_number(stderr) else float("nan"), float(n)


def _is_number(value: Any) -> bool:
    """The harness writes "N/A" where it has no standard error."""
    return isinstance(value, (int, float))


if __name__ == "__main__":
    # The model type belongs to the module by its own name, which registers it.
    importlib.import_module("mi_multilingual.evaluation.harness")
    cli_evaluate()
else:
    register_model(_MODEL_TYPE)(IntervenedLM)
