"""Text continued by the model, greedily."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from tqdm.auto import tqdm

from ..models import HookedModel


@torch.no_grad()
def generate(
    model: HookedModel, prompts: Sequence[str], *, max_new_tokens: int = 30, progress: bool = True
) -> list[str]:
    """The greedy continuation of every prompt, without the prompt, ending before the first end-of-text token.

    Prompts of one length in tokens run together, so there is no padding that could change the answer; hooks that are
    installed (`ablate`) act at every step.

    Raises:
        ValueError: a prompt without tokens, or one that with the new tokens is longer than the model's context.
    """
    tokenizer = model.tokenizer
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    by_length: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        ids = start + tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if not 0 < len(ids) <= model.cfg.n_ctx - max_new_tokens:
            raise ValueError(
                f"prompt {prompt[:40]!r} has {len(ids)} tokens; "
                f"with {max_new_tokens} new ones the model takes {model.cfg.n_ctx}"
            )
        by_length[len(ids)].append((i, ids))
    out = [""] * len(prompts)
    for length, group in tqdm(by_length.items(), desc="generating", disable=not progress):
        tokens = torch.tensor([ids for _, ids in group], device=model.cfg.device)
        whole = model.generate(tokens, max_new_tokens=max_new_tokens, do_sample=False, stop_at_eos=False, verbose=False)
        for (i, _), new in zip(group, whole[:, length:].tolist(), strict=True):
            end = new.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in new else len(new)
            out[i] = tokenizer.decode(new[:end])
    return out
