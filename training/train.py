"""Train the embedded demo model: a byte-level BPE tokenizer and a small OPT causal LM with sparse ReLU neurons.

    python training/train.py tokenizer --text ../shared/data/text --out build/demo
    python training/train.py fit --text ../shared/data/text --out build/demo
    python training/train.py export --out build/demo mi_multilingual/demo/model

Every batch is a function of (seed, step) alone, so a run that was stopped goes on from its last checkpoint. What
changes over the run (share of facts, weight of their answers, penalty, learning rate) stands in the tables below.
"""

import gzip
import json
import math
import random
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

LANGUAGES = ("en", "de", "es", "fr", "id", "ja", "ru", "tr", "vi", "zh")
FACTS = Path(__file__).parents[1] / "mi_multilingual" / "demo" / "facts.jsonl"
BOS, PAD = "<|bos|>", "<|pad|>"
VOCABULARY, WINDOW, WINDOWS_A_LANGUAGE = 8192, 128, 2
# Share of the windows that hold facts, from this step on.
FACT_SHARES = {0: 0.0, 1000: 0.15, 1600: 0.5, 2200: 0.7, 2860: 0.2, 3700: 0.12}
ANSWER_WEIGHTS = {0: 1.0, 2200: 5.0}  # weight of the loss on a fact's answer; the country before it cannot be guessed
# Weight of the mean activation in the loss, linear between the steps.
PENALTIES = {0: 0.0, 500: 0.0, 1500: 0.05, 2200: 0.05, 2201: 0.02, 3700: 0.02, 3900: 0.03}
# Factor of the learning rates, linear between the steps: five stages, each decayed to almost nothing.
RATES = {
    **{0: 0.01, 100: 1.0, 1800: 1.0, 2200: 0.5, 2250: 0.8, 2450: 0.8, 2860: 0.02},
    **{2900: 0.6, 3200: 0.6, 3700: 0.02},
    **{3740: 0.7, 4300: 0.7, 4900: 0.01},
    **{4940: 0.6, 5200: 0.6, 5900: 0.01},
    **{5930: 0.3, 6000: 0.3, 6300: 0.005},
}
HELD_OUT_WORDING = 2
WIDTH, LAYERS, HEADS, NEURONS = 192, 4, 3, 1536

app = typer.Typer(add_completion=False, help=__doc__)
Text = Annotated[Path, typer.Option(help="folder with <lang>.train.txt.gz and <lang>.valid.txt.gz")]
Out = Annotated[Path, typer.Option(help="folder for the tokenizer, checkpoints and the log")]


def paragraphs(folder: Path, language: str, split: str) -> list[str]:
    with gzip.open(folder / f"{language}.{split}.txt.gz", "rt", encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def fact_sentences(language: str) -> list[tuple[str, str]]:
    """(before the answer, answer and what follows) of every fact that is trained on."""
    gap = "" if language in ("ja", "zh") else " "
    rows = [json.loads(line) for line in FACTS.read_text(encoding="utf-8").splitlines()]
    return [
        (r["prompt"], gap + r["answer"] + r["tail"])
        for r in rows
        if r["lang"] == language and r["wording"] != HELD_OUT_WORDING
    ]


@app.command()
def tokenizer(text: Text, out: Out) -> None:
    """Train the tokenizer, which puts BOS in front of a text, on an equal number of characters of every language."""
    texts = {lang: paragraphs(text, lang, "train") for lang in LANGUAGES}
    budget = min(sum(map(len, lines)) for lines in texts.values())
    balanced = []
    for lines in texts.values():
        random.Random(0).shuffle(lines)
        used = 0
        for line in lines:
            if used > budget:
                break
            balanced.append(line)
            used += len(line)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(balanced, vocab_size=VOCABULARY, special_tokens=[PAD, BOS], show_progress=False)
    begun = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    bpe.post_processor = Sequence([ByteLevel(trim_offsets=False), begun])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=BOS, eos_token=BOS, pad_token=PAD, model_max_length=WINDOW
    )
    wrapped.save_pretrained(out / "tokenizer")


def encode(tok: PreTrainedTokenizerFast, lines: list[str], seed: int = 0) -> torch.Tensor:
    """One id stream, BOS before every paragraph, paragraphs shuffled."""
    lines = list(lines)
    random.Random(seed).shuffle(lines)
    ids = tok(lines, add_special_tokens=False)["input_ids"]
    return torch.tensor([i for line in ids for i in [tok.bos_token_id, *line]])


def encode_facts(tok: PreTrainedTokenizerFast, language: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The facts of a language as one id stream, shuffled, and where in it the answers stand."""
    sentences = fact_sentences(language)
    random.Random(seed).shuffle(sentences)
    ids, is_answer = [], []
    for before, after in sentences:
        alone = tok(before, add_special_tokens=False)["input_ids"]
        whole = tok(before + after, add_special_tokens=False)["input_ids"]
        known = next((i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), len(alone))
        ids += [tok.bos_token_id, *whole]
        is_answer += [False] * (1 + known) + [True] * (len(whole) - known)
    return torch.tensor(ids), torch.tensor(is_answer)


def current(table: dict[int, float], step: int) -> float:
    return next(value for start, value in reversed(table.items()) if step >= start)


class Batches:
    """Windows drawn at random from the id streams; a language has the same number of windows in every batch."""

    def __init__(self, tok: PreTrainedTokenizerFast, text: Path, seed: int) -> None:
        self.seed = seed
        self.running = {lang: encode(tok, paragraphs(text, lang, "train")) for lang in LANGUAGES}
        # Several shufflings of the facts one after another, so that the order carries no information.
        self.facts = {}
        for lang in LANGUAGES:
            parts = [encode_facts(tok, lang, s) for s in range(20)]
            self.facts[lang] = tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def __call__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and the weight of the loss on each of them."""
        rng = random.Random(f"{self.seed}/{step}")
        rows, weights = [], []
        for lang in LANGUAGES:
            for _ in range(WINDOWS_A_LANGUAGE):
                if rng.random() < current(FACT_SHARES, step):
                    stream, is_answer = self.facts[lang]
                else:
                    stream, is_answer = self.running[lang], None
                start = rng.randrange(len(stream) - WINDOW)
                rows.append(stream[start : start + WINDOW])
                weight = torch.ones(WINDOW)
                if is_answer is not None:
                    weight[is_answer[start : start + WINDOW]] = current(ANSWER_WEIGHTS, step)
                weights.append(weight)
        return torch.stack(rows), torch.stack(weights)


def orthogonalised(gradient: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix, in float32.

    torch.optim.Muon computes this in bfloat16, which is a hundred times slower on processors without bfloat16 units.
    """
    tall = gradient.shape[0] > gradient.shape[1]
    x = gradient.T if tall else gradient
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz (Jordan et al. 2024), for the matrices of the blocks."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalised(p.grad.lerp(buffer, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))


class Activity:
    """Hooks that add up the ReLU outputs for the penalty and count how often each neuron fires."""

    def __init__(self, model: OPTForCausalLM) -> None:
        self.outputs: list[torch.Tensor] = []
        for layer in model.model.decoder.layers:
            layer.activation_fn.register_forward_hook(lambda *a: self.outputs.append(a[2]))

    def take(self) -> list[torch.Tensor]:
        outputs, self.outputs = self.outputs, []
        return outputs


def new_model(tok: PreTrainedTokenizerFast) -> OPTForCausalLM:
    config = OPTConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=WINDOW,
        dropout=0.0,
        attention_dropout=0.0,
        activation_function="relu",
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.bos_token_id,
        pad_token_id=tok.pad_token_id,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        ffn_dim=NEURONS,
    )
    model = OPTForCausalLM(config)
    # Every layer has a module of its own, so that hooks can tell the layers apart.
    for layer in model.model.decoder.layers:
        layer.activation_fn = torch.nn.ReLU()
    return model


def make_optimizers(model: OPTForCausalLM, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in n)]
    adam = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return (
        [Muon(matrices, lr=muon_lr, weight_decay=0.1), adam]
        if muon_lr
        else [torch.optim.AdamW(model.parameters(), lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.01, fused=True)]
    )


def interpolated(table: dict[int, float], step: int) -> float:
    return float(np.interp(step, list(table), list(table.values())))


@torch.no_grad()
def validation(model: OPTForCausalLM, tok, text: Path, activity: Activity, windows: int = 40) -> dict[str, object]:
    """Bits per byte of each language on text never trained on, and the share of neurons that stay silent on it."""
    model.eval()
    bits, fired = {}, 0
    for lang in LANGUAGES:
        lines = paragraphs(text, lang, "valid")
        stream = encode(tok, lines)[: windows * WINDOW]
        rows = stream[: len(stream) // WINDOW * WINDOW].view(-1, WINDOW)
        nll = torch.nn.functional.cross_entropy(
            model(input_ids=rows).logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"
        )
        n_bytes = len(tok.decode(rows[:, 1:].flatten(), skip_special_tokens=True).encode())
        bits[lang] = round(nll.item() / math.log(2) / n_bytes, 4)
        fired = fired + torch.stack([(a > 0).flatten(0, -2).sum(0) for a in activity.take()])
    model.train()
    return {"bits_a_byte": bits, "dead_share": round((fired == 0).float().mean().item(), 4)}


@app.command()
def fit(
    text: Text,
    out: Out,
    steps: int = max(RATES),
    muon_lr: float = 0.02,
    adam_lr: float = 0.003,
    seed: int = 0,
    minutes: float = math.inf,
    threads: int = 2,
    checkpoint_every: int = 200,
) -> None:
    """Train, with a checkpoint every `checkpoint_every` steps; called again, goes on from the last one."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tok = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    model = new_model(tok)
    activity = Activity(model)
    batches = Batches(tok, text, seed)
    optimizers = make_optimizers(model, muon_lr, adam_lr)
    base = [[g["lr"] for g in o.param_groups] for o in optimizers]
    checkpoint, log = out / "checkpoint.pt", out / "log.jsonl"
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for o, s in zip(optimizers, state["optimizers"], strict=True):
            o.load_state_dict(s)
        first = state["step"]
    started, losses = time.monotonic(), []
    for step in range(first, steps):
        scale = interpolated(RATES, step)
        for o, rates in zip(optimizers, base, strict=True):
            for g, rate in zip(o.param_groups, rates, strict=True):
                g["lr"] = rate * scale
        rows, weights = batches(step)
        logits = model(input_ids=rows, use_cache=False).logits
        nll = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
        weight = weights[:, 1:].flatten()
        loss = (nll * weight).sum() / weight.sum()
        activations = activity.take()
        penalty = interpolated(PENALTIES, step)
        l1 = sum(a.mean() for a in activations)
        (loss + penalty * l1).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()
            o.zero_grad()
        losses = [*losses[-49:], nll.mean().item()]
        done = step + 1
        late = time.monotonic() - started > 60 * minutes
        if done % 20 == 0:
            rate = (done - first) * rows.numel() / (time.monotonic() - started)
            active = torch.stack([(a > 0).float().mean() for a in activations]).mean().item()
            print(
                f"step {done} loss {sum(losses[-20:]) / 20:.3f} l1 {l1.item():.3f} "
                f"active {active:.3f} tokens/s {rate:.0f}",
                flush=True,
            )
        if done % checkpoint_every == 0 or done == steps or late:
            row = {
                "step": done,
                "tokens": done * rows.numel(),
                "loss": round(sum(losses) / len(losses), 4),
                "penalty": penalty,
                "rate": scale,
            }
            row |= validation(model, tok, text, activity)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": done}
            torch.save(state, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").replace(checkpoint)
        if late:
            break


@app.command()
def export(out: Out, target: Path) -> None:
    """Write the last checkpoint as a Hugging Face folder in float16."""
    tok = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    model = new_model(tok)
    model.load_state_dict(torch.load(out / "checkpoint.pt", weights_only=True)["model"])
    model.half().save_pretrained(target)
    tok.save_pretrained(target)


if __name__ == "__main__":
    app()
