"""The DSpark drafter of one sequence (docs/architecture.md 11.1), from the network's streams.

Weights are dense arrays under their published names, experts included; positions begin at 0.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tests.oracles import Array, experts, hyper_connection
from tests.oracles.attention import attend
from tests.oracles.norm import rms_norm
from tests.oracles.rope import frequencies, rotate

Weights = Mapping[str, Array]


@dataclass(frozen=True)
class Shape:
    stages: int
    block: int
    noise: int
    window: int
    heads: int
    rotary: int
    rope_base: float
    groups: int
    picks: int
    route_scale: float
    swiglu_limit: float
    sinkhorn: int


def linear(weight: Array, x: Array) -> Array:
    return np.array([sum(float(row[i]) * float(x[i]) for i in range(len(x))) for row in weight])


def main_hidden(after_layers: list[Array]) -> Array:
    """One token's streams [m, c] after each tapped layer: the plain mean of each, end to end."""
    parts = []
    for streams in after_layers:
        count, width = streams.shape
        parts += [sum(float(streams[j, i]) for j in range(count)) / count for i in range(width)]
    return np.array(parts)


def context_vector(w: Weights, main: Array) -> Array:
    return rms_norm(linear(w["mtp.0.main_proj.weight"], main), w["mtp.0.main_norm.weight"])


def key(w: Weights, shape: Shape, stage: int, x: Array, position: int) -> Array:
    name = f"mtp.{stage}.attn"
    kv = rms_norm(linear(w[f"{name}.wkv.weight"], x), w[f"{name}.kv_norm.weight"])
    return rotate(kv, position, frequencies(shape.rope_base, shape.rotary))


def attention(
    w: Weights, shape: Shape, stage: int, rows: list[Array], context: list[Array], first: int
) -> list[Array]:
    """Rows at positions first, first + 1, ...: each sees all of `context` and all of the rows."""
    name, thetas = f"mtp.{stage}.attn", frequencies(shape.rope_base, shape.rotary)
    own = [key(w, shape, stage, row, first + i) for i, row in enumerate(rows)]
    outputs = []
    for i, row in enumerate(rows):
        low = rms_norm(linear(w[f"{name}.wq_a.weight"], row), w[f"{name}.q_norm.weight"])
        heads = linear(w[f"{name}.wq_b.weight"], low).reshape(shape.heads, -1)
        q = np.array([rotate(rms_norm(head), first + i, thetas) for head in heads])
        read = attend(q, [*context, *own], w[f"{name}.attn_sink"])
        back = np.array([rotate(head, first + i, thetas, inverse=True) for head in read])
        inner: list[float] = []
        down = w[f"{name}.wo_a.weight"]
        rank = len(down) // shape.groups
        for g, part in enumerate(back.reshape(shape.groups, -1)):
            inner += linear(down[g * rank : (g + 1) * rank], part).tolist()
        outputs.append(linear(w[f"{name}.wo_b.weight"], np.array(inner)))
    return outputs


def feed_forward(w: Weights, shape: Shape, stage: int, x: Array) -> Array:
    name = f"mtp.{stage}.ffn"
    scores = experts.scores(x, w[f"{name}.gate.weight"])
    chosen = experts.choose(scores, w[f"{name}.gate.bias"], shape.picks)
    weights = experts.routing_weights(scores, chosen, shape.route_scale)
    out = np.zeros(len(x))
    for expert, weight in [*zip(chosen, weights, strict=True), (None, 1.0)]:
        part = f"{name}.shared_experts" if expert is None else f"{name}.experts.{expert}"
        w1, w2, w3 = (w[f"{part}.{which}.weight"] for which in ("w1", "w2", "w3"))
        out += experts.swiglu(x, w1, w2, w3, shape.swiglu_limit, weight)
    return out


def sublayer_inputs(
    w: Weights, shape: Shape, stage: int, site: str, streams: list[Array]
) -> tuple[list[hyper_connection.Coefficients], list[Array]]:
    name = f"mtp.{stage}"
    fn, base, scale = (w[f"{name}.hc_{site}_{part}"] for part in ("fn", "base", "scale"))
    by = [
        hyper_connection.coefficients(each, fn, base, scale, iterations=shape.sinkhorn)
        for each in streams
    ]
    norm = w[f"{name}.{site}_norm.weight"]
    read = [hyper_connection.read(x, c.pre) for x, c in zip(streams, by, strict=True)]
    return by, [rms_norm(x, norm) for x in read]


def hidden(w: Weights, shape: Shape, mains: list[Array], anchor: int) -> list[Array]:
    """The rows z of the block behind the tokens 0 .. p that `mains` belong to."""
    p = len(mains) - 1
    visible = range(max(0, p - shape.window + 1), p + 1)
    context = {t: context_vector(w, mains[t]) for t in visible}
    ids = [anchor] + [shape.noise] * (shape.block - 1)
    streams = [np.array([w["embed.weight"][token]] * 4) for token in ids]
    for stage in range(shape.stages):
        keys = [key(w, shape, stage, context[t], t) for t in visible]
        by, rows = sublayer_inputs(w, shape, stage, "attn", streams)
        updates = attention(w, shape, stage, rows, keys, p + 1)
        streams = [
            hyper_connection.write(x, u, c.post, c.mix)
            for x, u, c in zip(streams, updates, by, strict=True)
        ]
        by, rows = sublayer_inputs(w, shape, stage, "ffn", streams)
        streams = [
            hyper_connection.write(x, feed_forward(w, shape, stage, row), c.post, c.mix)
            for x, row, c in zip(streams, rows, by, strict=True)
        ]
    last = f"mtp.{shape.stages - 1}"
    head = (
        w[f"{last}.hc_head_fn"],
        w[f"{last}.hc_head_base"],
        float(w[f"{last}.hc_head_scale"][0]),
    )
    return [hyper_connection.head(x, *head) for x in streams]


def draft(
    w: Weights, shape: Shape, mains: list[Array], anchor: int
) -> tuple[list[int], list[Array], list[float]]:
    """The likeliest tokens, each given those before it; their scores and survival probabilities."""
    last = f"mtp.{shape.stages - 1}"
    first = w[f"{last}.markov_head.markov_w1.weight"]
    second = w[f"{last}.markov_head.markov_w2.weight"]
    confidence = w[f"{last}.confidence_head.proj.weight"]
    tokens: list[int] = []
    logits: list[Array] = []
    survival: list[float] = []
    previous = anchor
    for z in hidden(w, shape, mains, anchor):
        scores = linear(w["head.weight"], rms_norm(z, w[f"{last}.norm.weight"]))
        pair = first[previous]
        scores = scores + linear(second, pair)
        logit = linear(confidence, np.concatenate([z, pair]))[0]
        survival.append(1 / (1 + math.exp(-logit)))
        logits.append(scores)
        previous = max(range(len(scores)), key=lambda v: (scores[v], -v))
        tokens.append(previous)
    return tokens, logits, survival
