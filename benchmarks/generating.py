"""Greedy text: `generate` beside that of transformers, with and without neurons switched off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from subjects import DEFAULT, Subject
from timing import Case
from torch import Tensor
from transformers import GenerationConfig

from mi_multilingual import NeuronSet, ablate, generate
from mi_multilingual.evaluation.generation import continuation_text
from mi_multilingual.models.hooked import end_ids

_BATCHES = {"cpu": (1, 4, 16), "cuda": (1, 16, 128)}
_NEW = {"cpu": 16, "cuda": 128}
_OFF = 0.01


def cases(subject: Subject) -> Iterator[Case]:
    neurons = random_neurons(subject, _OFF)
    for size in _BATCHES[subject.device]:
        prompts, n_new = _prompts(subject, size), _NEW[subject.device]
        expected, n_tokens = _plain(subject, prompts, n_new)
        ways: dict[str, Callable[[], list[str]]] = {"transformers": lambda p=prompts, n=n_new: _plain(subject, p, n)[0]}
        for backend, model in subject.ours.items():
            ways[f"generate, {backend}"] = lambda m=model, p=prompts, n=n_new: _ours(m, p, n)
        goals = {f"generate, {DEFAULT}": 0.9}
        yield _case(_counted(size), ways, n_tokens, expected, goals)
        yield from _changed(subject, neurons, prompts, n_new)


def _changed(subject: Subject, neurons: NeuronSet, prompts: Sequence[str], n_new: int) -> Iterator[Case]:
    """The same with neurons off; the unit is transformers' without any hook where texts are as long."""
    with switched_off(subject, neurons):
        expected, n_tokens = _plain(subject, prompts, n_new)

    def by_hand() -> list[str]:
        with switched_off(subject, neurons):
            return _plain(subject, prompts, n_new)[0]

    ways = {"transformers, its output not compared": lambda: _plain(subject, prompts, n_new) and None}
    ways["transformers, hooks by hand"] = by_hand
    for backend, model in subject.ours.items():

        def ours(model=model) -> list[str]:
            with ablate(model, neurons):
                return _ours(model, prompts, n_new)

        ways[f"generate under ablate, {backend}"] = ours
    goals = {f"generate under ablate, {DEFAULT}": 0.9}
    yield _case(f"{_counted(len(prompts))}, {_OFF:.0%} of the neurons off", ways, n_tokens, expected, goals)


def _counted(size: int) -> str:
    return f"{size} prompt{'s' * (size > 1)}, speed over transformers' greedy generate"


def _case(title: str, ways: dict, n_tokens: int, expected: list[str], goals: dict[str, float]) -> Case:
    def unequal(expected: list[str], got: list[str]) -> float:
        return sum(a != b for a, b in zip(expected, got, strict=True))

    return Case(title, ways, n_tokens, goals, expected, unequal, limit=0, speed=True)


def random_neurons(subject: Subject, share: float) -> NeuronSet:
    """One group with this share of all neurons."""
    model = subject.ours[DEFAULT]
    shape = (1, model.cfg.n_layers, model.cfg.d_mlp)
    return NeuronSet(torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share, ("en",), "random")


@contextmanager
def switched_off(subject: Subject, neurons: NeuronSet) -> Iterator[None]:
    """Within the block, hooks on the transformers model keep the neurons at zero."""
    masks = (~neurons.union()).to(subject.device)

    def hook_for(kept: Tensor) -> Callable[..., tuple[Tensor]]:
        return lambda module, args: (args[0] * kept.to(args[0].dtype),)

    with ExitStack() as stack:
        for module, kept in zip(subject.modules("down"), masks, strict=True):
            stack.callback(module.register_forward_pre_hook(hook_for(kept)).remove)
        yield


def _prompts(subject: Subject, number: int) -> list[str]:
    """Beginnings of 8 to 38 tokens, of mixed lengths."""
    text = " ".join(subject.text("en", 40 * number).documents["en"])
    ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [str(subject.tokenizer.decode(ids[40 * i : 40 * i + 8 + 13 * i % 31])) for i in range(number)]


def _ours(model, prompts: Sequence[str], n_new: int) -> list[str]:
    return generate(model, prompts, max_new_tokens=n_new, progress=False)


@torch.no_grad()
def _plain(subject: Subject, prompts: Sequence[str], n_new: int) -> tuple[list[str], int]:
    """The continuations, and their tokens."""
    ends = end_ids(subject.ours[DEFAULT])
    tokenizer = subject.tokenizer
    given = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(subject.device)
    how = GenerationConfig(
        max_new_tokens=n_new, do_sample=False, eos_token_id=list(ends), pad_token_id=tokenizer.pad_token_id
    )
    own, subject.hf.generation_config = subject.hf.generation_config, GenerationConfig()
    try:
        out = subject.hf.generate(input_ids=given.input_ids, attention_mask=given.attention_mask, generation_config=how)
    finally:
        subject.hf.generation_config = own
    texts, n_tokens = [], 0
    width = given.input_ids.shape[1]
    for mask, ids in zip(given.attention_mask.bool(), out, strict=True):
        new = ids[width:].tolist()
        end = next((i for i, token in enumerate(new) if token in ends), len(new))
        texts.append(continuation_text(tokenizer, ids[:width][mask].tolist(), new[:end]))
        n_tokens += min(end + 1, len(new))
    return texts, n_tokens
