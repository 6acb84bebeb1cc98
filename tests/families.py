"""Which architectures work with which class of TransformerLens: measured, and written into docs/models.md.

Run in each environment; the columns of other versions stay as they are:

    .venv/bin/python tests/families.py
"""

import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

import checkpoints
from mi_multilingual import load_model, site_of
from mi_multilingual.models.hooked import is_gated, run_trunk
from mi_multilingual.models.loading import HookedTransformer
from mi_multilingual.models.native import native_of

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
MAJOR = version("transformer-lens").partition(".")[0]
NAMES = {
    "llama": "Llama, SmolLM, Yi, EuroLLM",
    "llama-grouped": "Llama with grouped queries",
    "mistral": "Mistral",
    "mistral-wide-heads": "Mistral NeMo: heads wider than d_model / heads",
    "qwen2": "Qwen 1.5, 2, 2.5",
    "qwen3": "Qwen 3",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3, text",
    "phi3": "Phi-3",
    "cohere": "Cohere: Command R, Aya 23, Aya Expanse",
    "cohere2": "Cohere 2: Command R7B, Command A",
    "olmo2": "OLMo 2",
    "apertus": "Apertus",
    "stablelm": "StableLM",
    "gpt2": "GPT-2",
    "gpt-neox": "GPT-NeoX, Pythia",
    "bloom": "BLOOM, BLOOMZ",
    "opt": "OPT",
    "xglm": "XGLM",
    "falcon": "Falcon",
    "falcon-alibi": "Falcon RW: ALiBi",
}
COLUMNS = ["family", "model_type", "HookedTransformer 3.9", "bridge 3.9", "bridge 4.x", "MLP"]
CLASSES = {"hooked": "HookedTransformer 3.9", "bridge": "bridge 3.9" if MAJOR == "3" else "bridge 4.x"}
TOKENS = torch.randint(3, 300, (3, 11), generator=torch.Generator().manual_seed(0))


def activations_by_torch_hooks(folder, tokens):
    """{(site, layer): values} of the transformers model, by plain torch hooks, and its logits."""
    hf = AutoModelForCausalLM.from_pretrained(folder).eval()
    seen = {}

    def keep(name, layer, change=lambda x: x):
        return lambda module, inputs, output: seen.__setitem__((name, layer), change(output))

    for layer, mlp in enumerate(checkpoints.mlps(hf)):
        out = checkpoints.out_projection(mlp)
        out.register_forward_pre_hook(lambda m, inputs, layer=layer: seen.__setitem__(("post", layer), inputs[0]))
        act = ACT2FN[getattr(hf.config, "hidden_activation", None) or getattr(hf.config, "hidden_act", "gelu")]
        if hasattr(mlp, "gate_proj"):
            mlp.gate_proj.register_forward_hook(keep("gate", layer, act))
            mlp.up_proj.register_forward_hook(keep("up", layer))
        if hasattr(mlp, "gate_up_proj"):
            mlp.gate_up_proj.register_forward_hook(keep("gate", layer, lambda x, act=act: act(x.chunk(2, dim=-1)[0])))
            mlp.gate_up_proj.register_forward_hook(keep("up", layer, lambda x: x.chunk(2, dim=-1)[1]))
    with torch.no_grad():
        logits = hf(tokens).logits
    return {k: v.reshape(*tokens.shape, -1) for k, v in seen.items()}, logits


def sites(model):
    return ("gate", "post", "up") if is_gated(model) else ("gate", "post")


@torch.no_grad()
def neurons(model, site, tokens):
    """What a site's neurons are in every layer, by a pass that the package chooses."""
    where, ours = site_of(model, site), {}

    def keep(layer):
        return lambda value, hook: ours.__setitem__(layer, where.value(value))

    run_trunk(model, tokens, hooks=[(where.hook_name(n), keep(n)) for n in range(model.cfg.n_layers)])
    return [ours[layer] for layer in range(model.cfg.n_layers)]


def check(model, folder):
    """Raise unless logits and neurons are those of transformers."""
    seen, logits = activations_by_torch_hooks(folder, TOKENS)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS, return_type="logits"), logits, atol=1e-4, rtol=0)
    for site in sites(model):
        for layer, ours in enumerate(neurons(model, site, TOKENS)):
            expected = seen[site if is_gated(model) else "post", layer]
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
            assert expected.abs().max() > 0.05, "the comparison must be of numbers that differ from zero"


def measured(kind, folder):
    """The cells of one architecture that this environment can tell."""
    config = AutoModelForCausalLM.from_pretrained(folder).config
    cells = {"family": NAMES[kind], "model_type": f"`{config.model_type}`"}
    for backend, column in CLASSES.items():
        if backend == "hooked" and HookedTransformer is None:
            continue
        try:
            model = load_model(folder, backend=backend, device="cpu")
        except ValueError as error:
            cells[column] = "refused: other logits" if "logits must be" in str(error) else "refused: no conversion"
            continue
        check(model, folder)
        native = [s for s in sites(model) if site_of(model, s).hook_name(0) in native_of(model).places]
        cells[column] = "works" if len(native) == len(sites(model)) else f"works, natively only {', '.join(native)}"
        cells["MLP"] = f"{'gated' if is_gated(model) else 'ungated'}, {model.cfg.act_fn}"
    return cells


def table(page):
    """{family: {column: cell}} of the page's table."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    return {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in rows[2:]}


def written(page, cells):
    """The page with the cells in its table, one dictionary per architecture; what none of them says stays."""
    before = table(page)
    rows = [dict.fromkeys(COLUMNS, "") | before.get(new["family"], {}) | new for new in cells]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *([row[column] for column in COLUMNS] for row in rows)]
    start = page.index("| family")
    end = page.index("\n\n", start)
    return page[:start] + "\n".join(f"| {' | '.join(line)} |" for line in lines) + page[end:]


def main():
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        cells = [measured(kind, checkpoints.checkpoint(kind, Path(place) / kind / "model")) for kind in NAMES]
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), cells), encoding="utf-8")


if __name__ == "__main__":
    main()
