"""Train the embedded demo model: a byte-level BPE tokenizer and a small OPT causal LM with sparse ReLU neurons.

    python training/train.py tokenizer --text ../shared/data/text --out build/demo
    python training/train.py fit --text ../shared/data/text --out build/demo --steps 4000 --decay-steps 1000
    python training/train.py export --out build/demo mi_multilingual/demo/model

Every batch is a function of (seed, step) alone, so a run that was stopped goes on from its last checkpoint to the
same weights. The schedule is warm-up, constant, linear decay: `--steps` may be changed while the rate is constant.
"""

import gzip
import json
import math
import random
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import ByteLevelBPETokenizer
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

LANGUAGES = ("en", "de", "es", "fr", "id", "ja", "ru", "tr", "vi", "zh")
FACTS = Path(__file__).parents[1] / "mi_multilingual" / "demo" / "facts.jsonl"
BOS, PAD = "<|bos|>", "<|pad|>"
VOCABULARY, WINDOW, WINDOWS_A_LANGUAGE = 8192, 128, 2
FACT_SHARES = {0: 0.0, 1000: 0.15, 1600: 0.5}  # from this step on, share of windows that hold facts, not running text
HELD_OUT_WORDING = 2
SHAPE = dict(hidden_size=192, word_embed_proj_dim=192, num_hidden_layers=4, num_attention_heads=3, ffn_dim=1536)

app = typer.Typer(add_completion=False, help=__doc__)
Text = Annotated[Path, typer.Option(help="folder with <lang>.train.txt.gz and <lang>.valid.txt.gz")]
Out = Annotated[Path, typer.Option(help="folder for the tokenizer, checkpoints and the log")]


def paragraphs(folder: Path, language: str, split: str) -> list[str]:
    with gzip.open(folder / f"{language}.{split}.txt.gz", "rt", encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def fact_sentences(language: str) -> list[str]:
    gap = "" if language in ("ja", "zh") else " "
    rows = [json.loads(line) for line in FACTS.read_text(encoding="utf-8").splitlines()]
    return [
        r["prompt"] + gap + r["answer"] + r["tail"]
        for r in rows
        if r["lang"] == language and r["wording"] != HELD_OUT_WORDING
    ]


@app.command()
def tokenizer(text: Text, out: Out) -> None:
    """Train the tokenizer on an equal number of characters of every language."""
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


class Batches:
    """Windows drawn at random from the id streams; a language has the same number of windows in every batch."""

    def __init__(self, tok: PreTrainedTokenizerFast, text: Path, seed: int) -> None:
        self.seed = seed
        self.running = {lang: encode(tok, paragraphs(text, lang, "train")) for lang in LANGUAGES}
        # Several shufflings of the facts one after another, so that the order carries no information.
        self.facts = {lang: torch.cat([encode(tok, fact_sentences(lang), s) for s in range(20)]) for lang in LANGUAGES}

    def __call__(self, step: int) -> torch.Tensor:
        rng = random.Random(f"{self.seed}/{step}")
        share = next(s for start, s in reversed(FACT_SHARES.items()) if step >= start)
        rows = []
        for lang in LANGUAGES:
            for _ in range(WINDOWS_A_LANGUAGE):
                facts = rng.random() < share
                stream = (self.facts if facts else self.running)[lang]
                start = rng.randrange(len(stream) - WINDOW)
                rows.append(stream[start : start + WINDOW])
        return torch.stack(rows)


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
        **SHAPE,
    )
    model = OPTForCausalLM(config)
    # A module of its own a layer, so that hooks can tell the layers apart.
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


def schedule(step: int, steps: int, warmup: int, decay_steps: int) -> float:
    return min(1.0, (step + 1) / warmup, max(0.02, (steps - step) / max(1, decay_steps)))


@torch.no_grad()
def validation(model: OPTForCausalLM, tok, text: Path, activity: Activity, windows: int = 40) -> dict[str, object]:
    """Bits a byte a language on running text never trained on, and the share of neurons that stay silent on it."""
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
    steps: int = 4000,
    decay_steps: int = 1000,
    warmup: int = 100,
    muon_lr: float = 0.02,
    adam_lr: float = 0.003,
    penalty: float = 0.05,
    penalty_from: int = 500,
    penalty_full: int = 1500,
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
        scale = schedule(step, steps, warmup, decay_steps)
        for o, rates in zip(optimizers, base, strict=True):
            for g, rate in zip(o.param_groups, rates, strict=True):
                g["lr"] = rate * scale
        rows = batches(step)
        logits = model(input_ids=rows, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
        activations = activity.take()
        ramp = min(1.0, max(0.0, (step - penalty_from) / max(1, penalty_full - penalty_from)))
        l1 = sum(a.mean() for a in activations)
        (loss + penalty * ramp * l1).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimizers:
            o.step()
            o.zero_grad()
        losses = [*losses[-49:], loss.item()]
        done = step + 1
        late = time.monotonic() - started > 60 * minutes
        if done % 20 == 0:
            rate = (done - first) * rows.numel() / (time.monotonic() - started)
            active = torch.stack([(a > 0).float().mean() for a in activations]).mean().item()
            print(
                f"step {done} loss {sum(losses[-20:]) / 20:.3f} l1 {l1.item():.3f} active {active:.3f} tokens/s {rate:.0f}",
                flush=True,
            )
        if done % checkpoint_every == 0 or done == steps or late:
            row = {
                "step": done,
                "tokens": done * rows.numel(),
                "loss": round(sum(losses) / len(losses), 4),
                "ramp": ramp,
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
