import pytest
import torch

from mi_multilingual import NeuronSet, ablate, generate, record
from mi_multilingual.models import fingerprint, site

TOKENS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))


def chosen(model, density=0.4, seed=0, groups=("en", "fr")):
    shape = (len(groups), model.cfg.n_layers, model.cfg.d_mlp)
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    return NeuronSet(masks, groups, "test", model_fingerprint=fingerprint(model))


def logits(model):
    with torch.no_grad():
        return model(TOKENS, return_type="logits")


def with_rows_removed(model, mask):
    """Logits of the model with the output weights of the chosen neurons at zero, put back afterwards."""
    weights = [model.blocks[layer].mlp.W_out for layer in range(model.cfg.n_layers)]
    before = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w, m in zip(weights, mask, strict=True):
            w[m] = 0.0
    result = logits(model)
    with torch.no_grad():
        for w, b in zip(weights, before, strict=True):
            w.copy_(b)
    return result


def test_zero_ablation_equals_output_weights_at_zero(model):
    neurons, plain = chosen(model), logits(model)
    with ablate(model, neurons["en"]):
        during = logits(model)
    torch.testing.assert_close(during, with_rows_removed(model, neurons.masks[0]), atol=1e-5, rtol=1e-5)
    assert (during - plain).abs().max() > 0.01
    torch.testing.assert_close(logits(model), plain, atol=0, rtol=0)


def test_several_groups_are_ablated_together_and_blocks_nest(model):
    neurons = chosen(model)
    with ablate(model, neurons):
        together = logits(model)
    with ablate(model, neurons["en"]), ablate(model, neurons["fr"]):
        nested = logits(model)
    torch.testing.assert_close(together, nested)
    with ablate(model, neurons["en"]):
        with ablate(model, neurons["fr"]):
            pass
        outer = logits(model)
    with ablate(model, neurons["en"]):
        torch.testing.assert_close(outer, logits(model), atol=0, rtol=0)


def test_hooks_come_off_when_the_body_raises(model):
    plain = logits(model)
    with pytest.raises(RuntimeError, match="stop"), ablate(model, chosen(model)):
        raise RuntimeError("stop")
    torch.testing.assert_close(logits(model), plain, atol=0, rtol=0)


def test_an_empty_set_changes_nothing(model):
    plain = logits(model)
    with ablate(model, chosen(model, density=0.0)):
        torch.testing.assert_close(logits(model), plain, atol=0, rtol=0)


def test_mean_ablation_holds_the_mean_of_the_language(model, corpus):
    neurons = chosen(model)["en"]
    stats = record(model, corpus, site="post", window=8, progress=False)
    seen = {}
    hooks = [
        (site(model, "post").hook_name(layer), lambda x, hook, layer=layer: seen.__setitem__(layer, x))
        for layer in range(model.cfg.n_layers)
    ]
    with torch.no_grad(), ablate(model, neurons, mean_of=(stats, "fr")):
        model.run_with_hooks(TOKENS, fwd_hooks=hooks)
    for layer, mask in enumerate(neurons.masks[0]):
        expected = stats.mean()[layer, mask, stats.languages.index("fr")].float()
        assert torch.equal(seen[layer][..., mask], expected.expand(*TOKENS.shape, -1))


def test_ablation_acts_at_every_step_of_generation(model):
    neurons = chosen(model, density=0.8)
    prompts = ["The dog", "We drink tea"]
    with ablate(model, neurons):
        cached = generate(model, prompts, max_new_tokens=8, progress=False)
        by_hand = [greedy(model, p, 8) for p in prompts]
    assert cached == by_hand
    assert cached != generate(model, prompts, max_new_tokens=8, progress=False)


def greedy(model, prompt, n_new):
    """Greedy continuation by whole forward passes, without a cache."""
    tok = model.tokenizer
    ids = [tok.bos_token_id, *tok(prompt, add_special_tokens=False)["input_ids"]]
    new = []
    for _ in range(n_new):
        with torch.no_grad():
            new.append(int(model(torch.tensor([ids + new]), return_type="logits")[0, -1].argmax()))
    end = new.index(tok.eos_token_id) if tok.eos_token_id in new else len(new)
    return tok.decode(new[:end])


def test_generating_together_equals_generating_alone(model):
    prompts = ["The dog", "We drink tea when it rains", "犬が", "A small boat crossed", "Le chien"]
    together = generate(model, prompts, max_new_tokens=6, progress=False)
    assert together == [generate(model, [p], max_new_tokens=6, progress=False)[0] for p in prompts]
    assert together == [greedy(model, p, 6) for p in prompts]


def test_mistakes_are_told(model, corpus):
    shape = (1, model.cfg.n_layers, model.cfg.d_mlp + 1)
    with (
        pytest.raises(ValueError, match="load the model the set was made for"),
        ablate(model, NeuronSet(torch.zeros(shape) > 0, ("en",), "m")),
    ):
        pass
    other = NeuronSet(chosen(model).masks, ("en", "fr"), "m", model_fingerprint="another")
    with pytest.raises(ValueError, match="made for other weights"), ablate(model, other):
        pass
    gate = record(model, corpus, site="gate", window=8, progress=False)
    with (
        pytest.raises(ValueError, match="the statistics are of 'gate'"),
        ablate(model, chosen(model), mean_of=(gate, "fr")),
    ):
        pass
    with pytest.raises(ValueError, match="with 30 new ones the model takes"):
        generate(model, ["The dog sleeps under"], max_new_tokens=30, progress=False)
