"""Brute-force versions of every published number, written from its description: plain loops, one neuron at a time."""

import math

import torch


def probabilities(active, n_tokens):
    """{(layer, neuron): [float32 probability a language]}; float32 as the released code, held in Python floats."""
    table = {}
    for layer in range(len(active)):
        for neuron in range(len(active[layer])):
            counts = active[layer][neuron]
            table[layer, neuron] = [
                (torch.tensor(c, dtype=torch.float32) / torch.tensor(n, dtype=torch.float32)).item()
                for c, n in zip(counts, n_tokens, strict=True)
            ]
    return table


def entropy(weights):
    """Entropy in nats of the normalised weights, 0/0 := 0 and 0 log 0 := 0, in double precision."""
    total = math.fsum(weights)
    return -math.fsum(w / total * math.log(w / total) for w in weights if w > 0) if total > 0 else 0.0


def value_of_rank(values, share):
    """The value of rank round(share * n), counted from 1 in ascending order."""
    return sorted(values)[round(share * len(values)) - 1]


def select_by_entropy(weights, top_rate, filter_rate, activation_bar_ratio):
    """(kept neurons for certain, neurons that tie at the border, number kept, {neuron: set of language indices})."""
    everything = [w for row in weights.values() for w in row]
    bar, own_bar = value_of_rank(everything, filter_rate), value_of_rank(everything, activation_bar_ratio)
    entropies = {cell: entropy(row) if any(w > bar for w in row) else math.inf for cell, row in weights.items()}
    n_keep = round(top_rate * len(weights))
    border = sorted(entropies.values())[n_keep - 1]
    # float32 entropies that differ by less than this are ties that rounding may order either way
    close = {c for c, e in entropies.items() if e == border or abs(e - border) < 2e-6}
    certain = {c for c, e in entropies.items() if e < border and c not in close}
    owners = {c: {k for k, w in enumerate(row) if w > own_bar} for c, row in weights.items()}
    return certain, close, n_keep, owners


def released_lape(active, n_tokens, top_rate, filter_rate, activation_bar_ratio):
    """The released algorithm as its steps are described, in torch and float32; masks (language, layer, neuron)."""
    p = active / n_tokens
    q = p / p.sum(dim=-1, keepdim=True)
    q[torch.isnan(q)] = 0
    log_q = torch.where(q > 0, q.log(), 0)
    e = -torch.sum(q * log_q, dim=-1)
    flat = p.flatten()
    bar = flat.kthvalue(round(len(flat) * filter_rate)).values.item()
    e[(p > bar).sum(dim=-1) == 0] = torch.inf
    _, index = e.flatten().topk(round(e.numel() * top_rate), largest=False)
    own_bar = flat.kthvalue(round(len(flat) * activation_bar_ratio)).values.item()
    masks = torch.zeros(p.shape[-1], *e.shape, dtype=torch.bool)
    for i in index.tolist():
        layer, neuron = divmod(i, e.shape[1])
        for k in range(p.shape[-1]):
            masks[k, layer, neuron] = p[layer, neuron, k].item() > own_bar
    return masks


def bootstrap_mean_change(loss, base, n_tokens):
    """Change of the summed loss a token."""
    return sum(a - b for a, b in zip(loss, base, strict=True)) / sum(n_tokens)


def token_losses(logits, tokens):
    """Negative log-likelihood of every token after the first, one softmax at a time, in double precision."""
    losses = []
    for pos in range(1, len(tokens)):
        row = logits[pos - 1].double().tolist()
        top = max(row)
        losses.append(top + math.log(math.fsum(math.exp(x - top) for x in row)) - row[tokens[pos]])
    return losses


def jaccard(left, right):
    """|A and B| / |A or B| of two Python sets, 0 for two empty ones."""
    return len(left & right) / len(left | right) if left | right else 0.0


def average_precision(scores, labels):
    """Area under the precision-recall steps, thresholds at every distinct score, one threshold at a time."""
    area, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [label for score, label in zip(scores, labels, strict=True) if score >= threshold]
        now = sum(chosen) / sum(labels)
        area += (now - recall) * sum(chosen) / len(chosen)
        recall = now
    return area


def median(values):
    """The middle value, or the mean of the two middle ones."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def neuron_type(active):
    """Sharing category of one neuron from a list of booleans, one a language."""
    if all(active):
        return "all-shared"
    if not any(active):
        return "non-activated"
    return "specific" if sum(active) == 1 else "partial-shared"


def benjamini_hochberg(p_values):
    """Adjusted p-values: the least over larger ranks of p * n / rank."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, least = [0.0] * len(p_values), 1.0
    for place in range(len(order) - 1, -1, -1):
        least = min(least, p_values[order[place]] * len(p_values) / (place + 1))
        adjusted[order[place]] = least
    return adjusted


def nucleus(logits, temperature, top_p):
    """Probabilities to draw from: the fewest likeliest tokens that reach top_p together, the others at zero."""
    top = max(logits)
    weights = [math.exp((x - top) / temperature) for x in logits]
    probabilities = [w / math.fsum(weights) for w in weights]
    kept, total = set(), 0.0
    for token in sorted(range(len(logits)), key=lambda i: -probabilities[i]):
        if total >= top_p:
            break
        kept.add(token)
        total += probabilities[token]
    return [p / total if i in kept else 0.0 for i, p in enumerate(probabilities)]


def intervened_logits(hf_model, tokens, change):
    """Logits of a Hugging Face model whose neurons `change(layer, gate, up)` computes, by plain torch hooks.

    `gate` is the activation function's value; `up` what a gated MLP multiplies it by, None without a gate. `change`
    returns what goes into the output projection.
    """
    import checkpoints

    handles, seen = [], {}
    for layer, mlp in enumerate(checkpoints.mlps(hf_model)):

        def keep(name, layer=layer):
            return lambda module, inputs, output: seen.__setitem__((name, layer), output)

        def replaced(module, inputs, layer=layer):
            gate, up = seen.get(("gate", layer)), seen.get(("up", layer))
            gate = inputs[0].reshape(*tokens.shape, -1) if gate is None else hf_model.act(gate)
            return (change(layer, gate, up).reshape(inputs[0].shape),)

        if hasattr(mlp, "gate_proj"):
            handles += [mlp.gate_proj.register_forward_hook(keep("gate"))]
            handles += [mlp.up_proj.register_forward_hook(keep("up"))]
        handles += [checkpoints.out_projection(mlp).register_forward_pre_hook(replaced)]
    try:
        with torch.no_grad():
            return hf_model(tokens).logits
    finally:
        for handle in handles:
            handle.remove()


def wilson(hits, n, z=1.96):
    """The shares p whose test against hits / n just reaches z: both roots of (hits/n - p)^2 = z^2 p (1 - p) / n."""
    a, b, c = 1 + z * z / n, -(2 * hits / n + z * z / n), (hits / n) ** 2
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def main_scripts(text):
    """The scripts that have most bytes, of the letters the test draws; {""} without letters."""
    ranges = {
        "LATIN": "abé",
        "CYRILLIC": "яд",
        "HAN": "犬水",
        "KANA": "のはーｱア",
        "THAI": "กด",
        "HANGUL": "가",
        "GREEK": "α",
    }
    n_bytes = {"LATIN": {"a": 1, "b": 1, "é": 2}, "CYRILLIC": dict.fromkeys("яд", 2), "GREEK": {"α": 2}}
    counts = {
        script: sum(n_bytes.get(script, {}).get(c, 3) * text.count(c) for c in letters)
        for script, letters in ranges.items()
    }
    kana = counts.pop("KANA")
    counts["HAN"] += kana
    most = max(counts.values())
    if most == 0:
        return {""}
    east_asian = "KANA" if 10 * kana >= counts["HAN"] else "HAN"
    return {east_asian if script == "HAN" else script for script, n in counts.items() if n == most}


def switched(languages):
    """(main language, sentences with one, share in another): the main one has most sentences, the first of several."""
    known = [k for k in languages if k]
    if not known:
        return "", 0, math.nan
    best = max(known.count(k) for k in known)
    main = next(k for k in known if known.count(k) == best)
    return main, len(known), sum(k != main for k in known) / len(known)


def distinct_share(texts, n, single):
    """Distinct n-grams over n-grams; units are words, and the characters in `single` one by one."""
    seen, total = [], 0
    for text in texts:
        for c in single:
            text = text.replace(c, f" {c} ")
        units = text.split()
        for i in range(len(units)):
            gram = units[i : i + n]
            if len(gram) == n:
                total += 1
                if gram not in seen:
                    seen.append(gram)
    return len(seen) / total if total else math.nan


def steering_counts(rows, by):
    """{group: (n, in the target, else in the source, else)} of rows (dicts), one row at a time."""
    counts = {}
    for row in rows:
        cell = counts.setdefault(tuple(row[name] for name in by), [0, 0, 0, 0])
        cell[0] += 1
        place = 1 if row["found"] == row["target"] else 2 if row["found"] == row["source"] else 3
        cell[place] += 1
    return {key: tuple(cell) for key, cell in counts.items()}
