"""Brute-force versions of every published number, written from its description: plain loops, one neuron at a time."""

import itertools
import math

import numpy as np
import torch

from mi_multilingual.evaluation import intervals


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


def select_by_entropy(weights, rate, filter_rate, activation_bar_ratio):
    """(kept neurons for certain, neurons that tie at the border, number kept, {neuron: set of language indices})."""
    everything = [w for row in weights.values() for w in row]
    bar, own_bar = value_of_rank(everything, filter_rate), value_of_rank(everything, activation_bar_ratio)
    entropies = {cell: entropy(row) if any(w > bar for w in row) else math.inf for cell, row in weights.items()}
    n_keep = round(rate * len(weights))
    border = sorted(entropies.values())[n_keep - 1]
    # float32 entropies that differ by less than this are ties that rounding may order either way
    close = {c for c, e in entropies.items() if e == border or abs(e - border) < 2e-6}
    certain = {c for c, e in entropies.items() if e < border and c not in close}
    owners = {c: {k for k, w in enumerate(row) if w > own_bar} for c, row in weights.items()}
    return certain, close, n_keep, owners


def released_lape(active, n_tokens, rate, filter_rate, activation_bar_ratio):
    """The released algorithm as its steps are described, in torch and float32; masks (language, layer, neuron)."""
    p = active / n_tokens
    q = p / p.sum(dim=-1, keepdim=True)
    q[torch.isnan(q)] = 0
    log_q = torch.where(q > 0, q.log(), 0)
    e = -torch.sum(q * log_q, dim=-1)
    flat = p.flatten()
    bar = flat.kthvalue(round(len(flat) * filter_rate)).values.item()
    e[(p > bar).sum(dim=-1) == 0] = torch.inf
    _, index = e.flatten().topk(round(e.numel() * rate), largest=False)
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


def highest_tokens(activation, valid, k):
    """[(value, row, position)] of one neuron: a row's highest valid token (the first of several); best k > 0."""
    best = []
    for row, values in enumerate(activation):
        counted = [(x, -pos) for pos, x in enumerate(values) if valid[row][pos]]
        if counted:
            value, pos = max(counted)
            best.append((value, row, -pos))
    return sorted((b for b in best if b[0] > 0), key=lambda b: -b[0])[:k]


def logit_effect(row, weight, centres, unembedding):
    """(row through the norm's weight) . each column of the unembedding, less the mean over the vocabulary."""
    mean = math.fsum(row) / len(row) if centres else 0.0
    scaled = [(x - mean) * w for x, w in zip(row, weight, strict=True)]
    effects = [math.fsum(x * u for x, u in zip(scaled, column, strict=True)) for column in unembedding]
    return [e - math.fsum(effects) / len(effects) for e in effects]


def mean_log_likelihood(model, prompt, choice, normalise):
    """Log-likelihood of one continuation, one token at a time, over 1, its tokens or its bytes."""
    tok = model.tokenizer
    alone, whole = (tok(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + choice))
    first = 0
    while first < min(len(alone), len(whole)) and alone[first] == whole[first]:
        first += 1
    total = 0.0
    for pos in range(first, len(whole)):
        with torch.no_grad():
            logits = model(torch.tensor([[tok.bos_token_id, *whole[:pos]]]), return_type="logits")[0, -1]
        total += logits.double().log_softmax(-1)[whole[pos]].item()
    return total / {"none": 1, "tokens": len(whole) - first, "bytes": len(choice.encode())}[normalise]


def attention_rows(hf_model, layer, part):
    """The weights (column, d_model) and bias of W_Q, W_K or W_V of a Hugging Face layer, as views."""
    base, i = hf_model.base_model, "qkv".index(part)
    block = (getattr(base, "layers", None) or getattr(base, "h", None) or base.decoder.layers)[layer]
    if hasattr(block, "attn"):  # GPT-2: one matrix (in, out), queries then keys then values
        joint = block.attn.c_attn
        return joint.weight.T.chunk(3)[i], joint.bias.chunk(3)[i]
    if hasattr(block, "self_attn"):
        own = getattr(block.self_attn, f"{part}_proj")
        return own.weight, own.bias
    joint = getattr(block, "attention", None) or block.self_attention  # GPT-NeoX, BLOOM: head by head q, k, v
    joint = joint.query_key_value
    rows = [8 * (3 * head + i) + d for head in range(2) for d in range(8)]
    return Rows(joint.weight, rows), Rows(joint.bias, rows)


class Rows:
    """Some rows of a tensor, to be read and written by number."""

    def __init__(self, tensor, rows):
        self.tensor, self.rows = tensor, rows

    def __getitem__(self, i):
        return self.tensor[self.rows[i]]

    def __setitem__(self, i, value):
        self.tensor[self.rows[i]] = value


def logits_without_columns(hf_model, tokens, off):
    """Logits of a Hugging Face model with columns of {part: (layer, column) mask} and their biases at zero."""
    before = {name: tensor.clone() for name, tensor in hf_model.state_dict().items()}
    with torch.no_grad():
        for part, mask in off.items():
            for layer, column in mask.nonzero().tolist():
                weight, bias = attention_rows(hf_model, layer, part)
                weight[column] = 0.0
                if bias is not None:
                    bias[column] = 0.0
        logits = hf_model(tokens).logits
        hf_model.load_state_dict(before)
    return logits


def deactivation_effect(answers, group, language, measure, draws):
    """One row of the table of effects; `draws` says how often each question, in order of its id, is drawn."""
    names = sorted({a["id"] for a in answers})
    column = {"accuracy": "correct", "margin": "margin"}[measure]

    def score(name, *under):
        """The value of one question, or the mean over its languages for language ""."""
        found = [
            float(a[column])
            for a in answers
            if (a["id"], a["condition"], a["group"], a["seed"]) == (name, *under) and language in (a["language"], "")
        ]
        return math.fsum(found) / len(found)

    seeds = sorted({a["seed"] for a in answers if a["seed"] >= 0})
    intact = [score(name, "intact", "", -1) for name in names]
    value = [score(name, "chosen", group, -1) for name in names]
    random = [math.fsum(score(name, "random", group, s) for s in seeds) / len(seeds) for name in names]
    sizes = [
        a["n_neurons"]
        for a in answers
        if (a["condition"], a["group"]) == ("chosen", group) and language in (a["language"], "")
    ]
    mean = lambda xs: math.fsum(xs) / len(xs)  # noqa: E731
    result = {"n_items": len(names), "n_neurons": mean(sizes)}
    result |= {"intact": mean(intact), "value": mean(value), "random": mean(random)}
    for prefix, left, right in (("", value, intact), ("random_", random, intact), ("beyond_", value, random)):
        gaps = [a - b for a, b in zip(left, right, strict=True)]
        means = sorted(math.fsum(w * g for w, g in zip(draw, gaps, strict=True)) / len(names) for draw in draws)
        result["beyond" if prefix == "beyond_" else f"{prefix}change"] = mean(gaps)
        for end, share in (("low", 0.025), ("high", 0.975)):
            place = share * (len(means) - 1)
            below = int(place)
            above = means[min(below + 1, len(means) - 1)]
            result[prefix + end] = means[below] + (place - below) * (above - means[below])
    return result


def steering_counts(rows, by):
    """{group: (n, in the target, else in the source, else)} of rows (dicts), one row at a time."""
    counts = {}
    for row in rows:
        cell = counts.setdefault(tuple(row[name] for name in by), [0, 0, 0, 0])
        cell[0] += 1
        place = 1 if row["found"] == row["target"] else 2 if row["found"] == row["source"] else 3
        cell[place] += 1
    return {key: tuple(cell) for key, cell in counts.items()}


def sweep_means(rows):
    """{(detector, rate, condition, where): (languages, mean change)} of rows (dicts) of a sweep, one row at a time."""
    cells = {}
    for row in rows:
        group, evaluated = row["group"], row["evaluated"]
        if row["detector"] == "sharing":
            where, unit = group, evaluated
        elif evaluated == "":
            where, unit = "no prompt", group
        else:
            where, unit = "own" if group == evaluated else "others", group
        rate = None if math.isnan(row["rate"]) else row["rate"]
        key = (row["detector"], rate, "chosen" if row["seed"] == -1 else "random", where)
        cells.setdefault(key, {}).setdefault(unit, []).append(row["change"])
    means = {key: [math.fsum(c) / len(c) for c in units.values()] for key, units in cells.items()}
    return {key: (len(m), math.fsum(m) / len(m)) for key, m in means.items()}


def cosine(one, other):
    """Cosine of two lists of numbers; 0 where one is all zeros."""
    dot, sizes = math.fsum(a * b for a, b in zip(one, other, strict=True)), []
    for vector in (one, other):
        sizes.append(math.sqrt(math.fsum(a * a for a in vector)))
    return dot / (sizes[0] * sizes[1]) if all(sizes) else 0.0


def similarity_and_floor(one, other):
    """Mean cosine of translations, and of all ordered pairs of sentences i != j."""
    n = len(one)
    own = [cosine(one[i], other[i]) for i in range(n)]
    apart = [cosine(one[i], other[j]) for i in range(n) for j in range(n) if i != j]
    return math.fsum(own) / n, math.fsum(apart) / len(apart)


def retrieved(one, other):
    """Of every sentence, whether its translation is nearer than all others, up to rounding."""
    n = len(one)
    return [
        all(cosine(one[i], other[i]) > cosine(one[i], other[j]) + 1e-12 for j in range(n) if j != i) for i in range(n)
    ]


def linear_cka(one, other, unbiased):
    """Linear CKA from centred columns, |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F), or the unbiased HSIC entry by entry."""
    n = len(one)

    def centred(vectors):
        means = [math.fsum(column) / n for column in zip(*vectors, strict=True)]
        return [[x - m for x, m in zip(row, means, strict=True)] for row in vectors]

    def columns(x, y):
        return math.fsum(
            math.fsum(a[i] * b[j] for a, b in zip(x, y, strict=True)) ** 2
            for i in range(len(x[0]))
            for j in range(len(y[0]))
        )

    def kernel(x):
        return [
            [0.0 if i == j else math.fsum(a * b for a, b in zip(x[i], x[j], strict=True)) for j in range(n)]
            for i in range(n)
        ]

    def hsic(x, y):
        k, m = kernel(x), kernel(y)
        places = [(i, j) for i in range(n) for j in range(n)]
        trace = math.fsum(k[i][j] * m[j][i] for i, j in places)
        sums = math.fsum(k[i][j] for i, j in places) * math.fsum(m[i][j] for i, j in places)
        crossed = math.fsum(k[i][j] * m[j][q] for i, j in places for q in range(n))
        return (trace + sums / ((n - 1) * (n - 2)) - 2 * crossed / (n - 2)) / (n * (n - 3))

    x, y = centred(one), centred(other)
    measure = hsic if unbiased else columns
    return measure(x, y) / math.sqrt(measure(x, x) * measure(y, y))


def share_at_ends(counts):
    """(share in the outer thirds, share of all ways to deal the counts out to the layers that reach it)."""
    n = len(counts)
    outer = [layer for layer in range(n) if not 1 / 3 <= (layer + 0.5) / n <= 2 / 3]
    found = sum(counts[layer] for layer in outer)
    ways = [sum(dealt[layer] for layer in outer) for dealt in itertools.permutations(counts)]
    return found / sum(counts), sum(way >= found for way in ways) / len(ways)


def chance_at_ends(counts):
    """Shares in the outer thirds between which at least 95 % lie, over all choices of as many layers."""
    n = len(counts)
    n_outer = sum(not 1 / 3 <= (layer + 0.5) / n <= 2 / 3 for layer in range(n))
    shares = sorted(sum(ways) / sum(counts) for ways in itertools.combinations(counts, n_outer))
    last = len(shares) - 1
    return shares[math.floor(last * 0.025)], shares[math.ceil(last * 0.975)]


def language_of_token(counts, share):
    """The language (index) that has at least `share` of a token, "shared", or None for one never seen.

    counts: (times the token is in the text, tokens of the text), one pair per language.
    """
    rates = [n / total for n, total in counts]
    if not sum(rates):
        return None
    best = max(range(len(rates)), key=lambda k: rates[k])
    return best if rates[best] / sum(rates) >= share else "shared"


def decoded_tokens(hf_model, ids, layer, top, *, norm=True):
    """For every position of one row, the ids of the `top` highest logits read off the output of a block."""
    base = hf_model.get_decoder() if hf_model.config.model_type == "opt" else hf_model.model
    base = getattr(base, "decoder", base)
    seen = {}

    def keep(module, given, output):
        seen["x"] = output[0] if isinstance(output, tuple) else output

    handle = base.layers[layer].register_forward_hook(keep)
    with torch.no_grad():
        hf_model(input_ids=torch.tensor([ids]))
        handle.remove()
        last_norm = base.final_layer_norm if hasattr(base, "final_layer_norm") else base.norm
        logits = hf_model.lm_head(last_norm(seen["x"]) if norm else seen["x"])[0]
    return [sorted(range(len(row)), key=lambda t: -row[t])[:top] for row in logits.tolist()]


def word_beginnings(word, vocabulary):
    """Tokens whose bytes are the beginning of the word or of the word after a space, but for a lone space."""
    found = []
    for token, written in vocabulary.items():
        if written not in (b"", b" ") and any(form.encode().startswith(written) for form in (word, " " + word)):
            found.append(token)
    return sorted(found)


def three_regions(own, pivot):
    """Blocks that understand, reason and generate, walked through one by one; None where one of them is empty."""
    n = len(own)
    understanding = []
    for block in range(n):
        if own[block] < pivot[block]:
            break
        understanding.append(block)
    generation = []
    for block in reversed(range(n)):
        if own[block] < pivot[block]:
            break
        generation.insert(0, block)
    reasoning = [b for b in range(n) if b not in understanding and b not in generation]
    parts = (understanding, reasoning, generation)
    return parts if all(parts) and len(understanding) + len(generation) < n else None


def masked_tuning(model, batches, chosen: dict, *, steps: int, learning_rate: float) -> dict:
    """Adam by hand on whole weights whose gradient is set to zero but for the chosen neurons: name -> change.

    `chosen`: name of a weight -> function from the weight to a mask of its shape.
    """
    weights = {name: p for name, p in model.named_parameters() if name in chosen}
    masks = {name: chosen[name](p) for name, p in weights.items()}
    first = {name: p.detach().clone() for name, p in weights.items()}
    mean, square = ({name: torch.zeros_like(p) for name, p in weights.items()} for _ in range(2))
    for step, batch in zip(range(1, steps + 1), batches, strict=True):
        logits = model(batch.tokens, return_type="logits").log_softmax(-1)
        total = n = 0
        for row in range(len(batch.tokens)):
            for pos in range(1, batch.tokens.shape[1]):
                if batch.valid[row, pos]:
                    total, n = total - logits[row, pos - 1, batch.tokens[row, pos]], n + 1
        for p in weights.values():
            p.requires_grad_(True)
            p.grad = None
        (total / n).backward()
        for name, p in weights.items():
            gradient = torch.where(masks[name], p.grad, 0.0)
            mean[name] = 0.9 * mean[name] + 0.1 * gradient
            square[name] = 0.999 * square[name] + 0.001 * gradient**2
            move = mean[name] / (1 - 0.9**step) / ((square[name] / (1 - 0.999**step)).sqrt() + 1e-8)
            p.data -= learning_rate * torch.where(masks[name], move, 0.0)
    return {name: p.detach() - first[name] for name, p in weights.items()}


def edit_direction(elsewhere, at_subject):
    """u = C^-1 k: C the mean outer product of keys elsewhere with a ridge, k the mean of the keys at the subject."""
    n, size = len(elsewhere), len(elsewhere[0])
    moment = np.zeros((size, size))
    for key in elsewhere:
        for i in range(size):
            for j in range(size):
                moment[i, j] += key[i] * key[j] / n
    ridge = 1e-4 * sum(moment[i, i] for i in range(size)) / size
    for i in range(size):
        moment[i, i] += ridge
    return np.linalg.solve(moment, sum(np.asarray(key, dtype=float) for key in at_subject) / len(at_subject))


def edit_update(direction, key, written, value):
    """What is added to the output weights, row by row, so that the key gives the value in place of what was written."""
    along = sum(k * u for k, u in zip(key, direction, strict=True))
    return np.array([[u * (v - m) / along for v, m in zip(value, written, strict=True)] for u in direction])


def descended(loss, n, reach, steps=20, rate=0.5, enough=0.05):
    """Adam by its formulas from zero, kept within a distance; `loss` gives the loss and its gradient."""
    x, first, second = np.zeros(n), np.zeros(n), np.zeros(n)
    for step in range(1, steps + 1):
        value, gradient = loss(x)
        if value < enough:
            break
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        x = x - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        length = np.sqrt((x**2).sum())
        x = x * (reach / length) if length > reach else x
    return x


def last_token_of(text, end, pieces):
    """The first token by which the text up to `end` is whole; `pieces` decodes ever more tokens."""
    return next(i for i, piece in enumerate(pieces) if piece.startswith(text[:end]))


def tuning_changes(rows):
    """(arm, group, evaluated) -> change of the loss per token, mean over seeds, from rows of a `tuning_study`."""
    sums = {}
    for row in rows:
        cell = sums.setdefault((row["arm"], row["group"], row["evaluated"]), {})
        change, n = cell.get(row["seed"], (0.0, 0))
        cell[row["seed"]] = (change + row["after"] - row["before"], n + row["n_tokens"])
    return {cell: sum(change / n for change, n in by_seed.values()) / len(by_seed) for cell, by_seed in sums.items()}


def shares_by_chance(probabilities):
    """Expected share of each number of languages a neuron is active in, over all 2^K patterns of independent ones."""
    expected = [0.0] * (len(probabilities) + 1)
    for pattern in range(2 ** len(probabilities)):
        active = [bool(pattern >> k & 1) for k in range(len(probabilities))]
        chance = math.prod(p if a else 1 - p for p, a in zip(probabilities, active, strict=True))
        expected[sum(active)] += chance
    return {
        "all-shared": expected[-1],
        "partial-shared": math.fsum(expected[2:-1]),
        "specific": expected[1],
        "non-activated": expected[0],
    }


def experts_used(activations, experts, n_used):
    """The experts of a token: largest sums of |activation|, of equals the lower number."""
    sums = [0.0] * (max(experts) + 1)
    for value, expert in zip(activations, experts, strict=True):
        sums[expert] += abs(value)
    return set(sorted(range(len(sums)), key=lambda e: (-sums[e], e))[:n_used])


def permuted_correlations(one, other, correlate):
    """The correlation over all pairs of two square tables, for every order of the languages of the second."""
    pairs = list(itertools.combinations(range(len(one)), 2))
    found = []
    for order in itertools.permutations(range(len(one))):
        found.append(correlate([one[a][b] for a, b in pairs], [other[order[a]][order[b]] for a, b in pairs]))
    return found


def layer_experts(total, weights, most):
    """`total` parts given to layers in proportion to their weights, none above `most`: shares, before rounding."""
    full = set()
    while True:
        free = [i for i in range(len(weights)) if i not in full]
        rest, scale = total - most * len(full), math.fsum(weights[i] for i in free)
        shares = {i: rest * weights[i] / scale for i in free}
        above = {i for i, share in shares.items() if share > most}
        if not above:
            return [most if i in full else shares[i] for i in range(len(weights))]
        full |= above


def open_counts(rows):
    """Answers counted by loops: key -> n, in the language wanted, unknown, mixed, mean of distinct, loss per token."""
    found = {}
    for row in rows:
        key = tuple(row[name] for name in ("change", "group", "drawn", "condition", "source", "target"))
        found.setdefault(key, []).append(row)
    return {
        key: (
            len(own),
            sum(r["found"] == r["target"] for r in own),
            sum(r["found"] == "unknown" for r in own),
            sum(r["found"] == "mixed" for r in own),
            sum(r["distinct_2"] for r in own) / len(own),
            sum(r["nll"] * r["n_tokens"] for r in own) / sum(r["n_tokens"] for r in own),
        )
        for key, own in found.items()
    }


def overlap_of_pairs(groups):
    """Group -> set of neurons: share of the first's that are the second's too, for every ordered pair."""
    return {(a, b): len(groups[a] & groups[b]) / len(groups[a]) for a in groups for b in groups if a != b}


def middle(values):
    """The 2.5th and 97.5th percentile by linear interpolation."""
    ordered = sorted(values)
    found = []
    for quantile in (0.025, 0.975):
        place = quantile * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        found.append(ordered[below] + (place - below) * (ordered[above] - ordered[below]))
    return tuple(found)


def translation_draws(candidates, references, metrics):
    """Scores of sacrebleu over all sentences and over every bootstrap draw, drawn sentence by sentence.

    Returns: measure -> for every candidate a list, the first of which is the text as it is.
    """
    n = len(references)
    draws = [[1] * n, *intervals.resampled(n, np.random.default_rng(0)).tolist()]
    found = {}
    for name, metric in zip(("bleu", "chrf"), metrics, strict=True):
        found[name] = []
        for texts in zip(*candidates, strict=True):
            scores = []
            for times in draws:
                places = [i for i, often in enumerate(times) for _ in range(often)]
                chosen = metric.corpus_score([texts[i] for i in places], [[references[i] for i in places]])
                scores.append(chosen.score)
            found[name].append(scores)
    return found
