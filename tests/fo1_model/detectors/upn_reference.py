"""UPN once more, slowly, in numpy from the published names: what tests hold the network against.

Written from what the released code does at each step, in another form than the network: window
attention is dense attention with a mask over windows, deformable attention adds up four corners,
nothing is batched.
"""

import numpy as np
from scipy.special import erf

from fo1_model.detectors.upn.network import UPNNetworkConfig

Weights = dict[str, np.ndarray]
SWIN = "backbone.model.backbone."


def published_shapes(config: UPNNetworkConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published state dict, written out module by module."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = weight[:1]

    width, window = config.embed_dim, config.window_size
    layer(f"{SWIN}patch_embed.proj", width, 3, 4, 4)
    layer(f"{SWIN}patch_embed.norm", width)
    for stage, depth in enumerate(config.depths):
        for number in range(depth):
            block = f"{SWIN}layers.{stage}.blocks.{number}."
            layer(f"{block}norm1", width)
            shapes[f"{block}attn.relative_position_bias_table"] = (
                (2 * window - 1) ** 2,
                config.backbone_heads[stage],
            )
            shapes[f"{block}attn.relative_position_index"] = (window**2, window**2)
            layer(f"{block}attn.qkv", 3 * width, width)
            layer(f"{block}attn.proj", width, width)
            layer(f"{block}norm2", width)
            layer(f"{block}mlp.fc1", 4 * width, width)
            layer(f"{block}mlp.fc2", width, 4 * width)
        layer(f"{SWIN}norm{stage}", width)
        if stage + 1 < len(config.depths):
            shapes[f"{SWIN}layers.{stage}.downsample.reduction.weight"] = (2 * width, 4 * width)
            layer(f"{SWIN}layers.{stage}.downsample.norm", 4 * width)
            width *= 2
    dim, stages = config.hidden_dim, len(config.depths)
    for level in range(config.num_levels):
        source = config.embed_dim * 2 ** min(level, stages - 1) if level <= stages else dim
        side = 1 if level < stages else 3
        layer(f"input_proj.{level}.0", dim, source, side, side)
        layer(f"input_proj.{level}.1", dim)

    def attention(name: str) -> None:
        points = config.num_heads * config.num_levels * config.num_points
        layer(f"{name}.sampling_offsets", 2 * points, dim)
        layer(f"{name}.attention_weights", points, dim)
        layer(f"{name}.value_proj", dim, dim)
        layer(f"{name}.output_proj", dim, dim)

    def feedforward(name: str) -> None:
        layer(f"{name}.linear1", config.feedforward_dim, dim)
        layer(f"{name}.linear2", dim, config.feedforward_dim)

    for number in range(config.num_encoder_layers):
        name = f"transformer.encoder.layers.{number}"
        attention(f"{name}.self_attn")
        feedforward(name)
        layer(f"{name}.norm1", dim)
        layer(f"{name}.norm2", dim)
    for number in range(config.num_decoder_layers):
        name = f"transformer.decoder.layers.{number}"
        attention(f"{name}.cross_attn")
        shapes[f"{name}.self_attn.in_proj_weight"] = (3 * dim, dim)
        shapes[f"{name}.self_attn.in_proj_bias"] = (3 * dim,)
        layer(f"{name}.self_attn.out_proj", dim, dim)
        feedforward(name)
        for norm in ("norm1", "norm2", "norm3"):
            layer(f"{name}.{norm}", dim)
        for head in (f"bbox_embed.{number}", f"transformer.decoder.bbox_embed.{number}"):
            for depth, out in enumerate((dim, dim, 4)):
                layer(f"{head}.layers.{depth}", out, dim)
    layer("transformer.decoder.norm", dim)
    layer("transformer.decoder.ref_point_head.layers.0", dim, 2 * dim)
    layer("transformer.decoder.ref_point_head.layers.1", dim, dim)
    layer("transformer.decoder.ref_point_head_point.layers.0", dim, dim)
    layer("transformer.decoder.ref_point_head_point.layers.1", dim, dim)
    shapes["transformer.level_embed"] = (config.num_levels, dim)
    shapes["transformer.tgt_embed.weight"] = (config.num_queries, dim)
    layer("transformer.enc_output", dim, dim)
    layer("transformer.enc_output_norm", dim)
    for depth, out in enumerate((dim, dim, 4)):
        layer(f"transformer.enc_out_bbox_embed.layers.{depth}", out, dim)
    shapes["transformer.fine_grained_prompt.weight"] = (1, dim)
    shapes["transformer.coarse_grained_prompt.weight"] = (1, dim)
    return shapes


def published_weights(config: UPNNetworkConfig, seed: int) -> Weights:
    """A published state dict with weights drawn so that every part matters.

    float32, but for index buffers, which are int64.
    """
    weights: Weights = {}
    for name, shape in sorted(published_shapes(config).items()):
        draws = np.random.default_rng([seed, *name.encode()])
        if name.endswith("relative_position_index"):
            weights[name] = np.zeros(shape, np.int64)
            continue
        value = draws.standard_normal(shape)
        if name.endswith("sampling_offsets.bias"):
            value *= 2.0
        elif len(shape) == 1:
            value = value * 0.1 + name.endswith("weight")  # norms near one, biases near zero
        elif "embed.weight" not in name and "prompt" not in name and "level_embed" not in name:
            value /= np.sqrt(np.prod(shape[1:]))
        weights[name] = value.astype(np.float32)
    for name in weights:
        if "bbox_embed." in name and "enc_out" not in name:  # one head for all layers
            weights[name] = weights["bbox_embed.0.layers." + name.split(".layers.")[1]]
    return weights


def forward(
    weights: Weights, config: UPNNetworkConfig, pixels: np.ndarray, prompt: str
) -> tuple[np.ndarray, np.ndarray]:
    """One image [3, H, W]: logits [K] and boxes [K, 4] in float64."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    maps = _swin(w, config, pixels.astype(np.float64))
    source = maps[-1]
    levels = []
    for level in range(config.num_levels):
        name = f"input_proj.{level}"
        if level < len(maps):
            kernel = w[f"{name}.0.weight"][:, :, 0, 0]
            one = np.einsum("oc,chw->ohw", kernel, maps[level]) + w[f"{name}.0.bias"][:, None, None]
        else:
            one = _strided(source, w[f"{name}.0.weight"], w[f"{name}.0.bias"])
        one = _group_norm(one, w[f"{name}.1.weight"], w[f"{name}.1.bias"], groups=32)
        levels.append(one)
        source = one if level >= len(maps) else source
    shapes = [one.shape[1:] for one in levels]
    dim = config.hidden_dim
    states = np.concatenate([one.reshape(dim, -1).T for one in levels])
    places = np.array(
        [(y, x, h, v) for h, v in shapes for y in range(h) for x in range(v)], np.float64
    )
    center = np.stack([(places[:, 1] + 0.5) / places[:, 3], (places[:, 0] + 0.5) / places[:, 2]], 1)
    level_of = np.repeat(np.arange(len(shapes)), [h * v for h, v in shapes])
    position = np.concatenate(
        [
            sine((places[:, 0] + 1) / places[:, 2], dim // 2, 20),
            sine((places[:, 1] + 1) / places[:, 3], dim // 2, 20),
        ],
        1,
    )
    position = position + w["transformer.level_embed"][level_of]
    for number in range(config.num_encoder_layers):
        name = f"transformer.encoder.layers.{number}"
        read = deformable(w, f"{name}.self_attn", config, states + position, center, states, shapes)
        states = _norm(w, f"{name}.norm1", states + read)
        states = _norm(w, f"{name}.norm2", states + _feedforward(w, name, states))
    return _decode(
        w,
        config,
        states,
        center,
        level_of,
        shapes,
        w[f"transformer.{prompt}_grained_prompt.weight"][0],
    )


def _decode(w, config, memory, center, level_of, shapes, prompt):
    side = 0.05 * 2.0**level_of
    anchors = np.stack([center[:, 0], center[:, 1], side, side], 1)
    valid = ((anchors > 0.01) & (anchors < 0.99)).all(1)
    proposals = np.where(valid[:, None], memory, 0.0)
    proposals = _norm(
        w, "transformer.enc_output_norm", _linear(w, "transformer.enc_output", proposals)
    )
    chosen = np.argsort(-(proposals @ prompt), kind="stable")[: config.num_queries]
    boxes = _mlp(w, "transformer.enc_out_bbox_embed", proposals[chosen], 3)
    boxes = _sigmoid(np.log(anchors[chosen] / (1 - anchors[chosen])) + boxes)
    boxes = np.where(valid[chosen, None], boxes, 1.0)
    states = w["transformer.tgt_embed.weight"][: len(chosen)]
    half = config.hidden_dim // 2
    for number in range(config.num_decoder_layers):
        name = f"transformer.decoder.layers.{number}"
        embedding = np.concatenate([sine(boxes[:, i], half, 10_000) for i in (1, 0, 2, 3)], 1)
        position = _mlp(w, "transformer.decoder.ref_point_head", embedding, 2)
        states = _norm(
            w, f"{name}.norm2", states + _self_attention(w, name, config, states, position)
        )
        read = deformable(w, f"{name}.cross_attn", config, states + position, boxes, memory, shapes)
        states = _norm(w, f"{name}.norm1", states + read)
        states = _norm(w, f"{name}.norm3", states + _feedforward(w, name, states))
        before = boxes
        boxes = _refine(w, states, before)
    final = _norm(w, "transformer.decoder.norm", states)
    return final @ prompt, _refine(w, final, before)


def deformable(w, name, config, queries, places, memory, shapes):
    """Deformable attention: each point is the sum of its four corners, which are zero outside."""
    heads, levels, points = config.num_heads, len(shapes), config.num_points
    count, width = len(queries), config.hidden_dim // heads
    offsets = _linear(w, f"{name}.sampling_offsets", queries).reshape(
        count, heads, levels, points, 2
    )
    shares = _linear(w, f"{name}.attention_weights", queries).reshape(count, heads, levels * points)
    shares = _softmax(shares).reshape(count, heads, levels, points)
    values = _linear(w, f"{name}.value_proj", memory).reshape(-1, heads, width)
    result = np.zeros((count, heads, width))
    start = 0
    for level, (height, across) in enumerate(shapes):
        table = values[start : start + height * across].reshape(height, across, heads, width)
        start += height * across
        for head in range(heads):
            for point in range(points):
                offset = offsets[:, head, level, point]
                if places.shape[1] == 2:
                    at = places + offset / [across, height]
                else:
                    at = places[:, :2] + offset / points * places[:, 2:] / 2
                x, y = at[:, 0] * across - 0.5, at[:, 1] * height - 0.5
                for column in (np.floor(x), np.floor(x) + 1):
                    for row in (np.floor(y), np.floor(y) + 1):
                        inside = (column >= 0) & (column < across) & (row >= 0) & (row < height)
                        weight = (1 - abs(x - column)) * (1 - abs(y - row)) * inside
                        taken = table[
                            np.where(inside, row, 0).astype(int),
                            np.where(inside, column, 0).astype(int),
                            head,
                        ]
                        result[:, head] += (weight * shares[:, head, level, point])[:, None] * taken
    return _linear(w, f"{name}.output_proj", result.reshape(count, -1))


def sine(values, width, temperature):
    """Entry 2i of a value is a sine, entry 2i + 1 the cosine of the same angle."""
    result = np.empty((len(values), width))
    for i in range(width // 2):
        angle = 2 * np.pi * values / temperature ** (2 * i / width)
        result[:, 2 * i], result[:, 2 * i + 1] = np.sin(angle), np.cos(angle)
    return result


def _swin(w, config, pixels):
    _, height, across = pixels.shape
    padded = np.pad(pixels, ((0, 0), (0, -height % 4), (0, -across % 4)))
    h, v = padded.shape[1] // 4, padded.shape[2] // 4
    patches = padded.reshape(3, h, 4, v, 4).transpose(1, 3, 0, 2, 4).reshape(h, v, 48)
    kernel = w[f"{SWIN}patch_embed.proj.weight"].reshape(-1, 48)
    x = _norm(w, f"{SWIN}patch_embed.norm", patches @ kernel.T + w[f"{SWIN}patch_embed.proj.bias"])
    maps = []
    for stage, depth in enumerate(config.depths):
        for number in range(depth):
            name = f"{SWIN}layers.{stage}.blocks.{number}"
            shift = config.window_size // 2 if number % 2 else 0
            x = x + _window_attention(w, name, config, config.backbone_heads[stage], x, shift)
            inner = _linear(w, f"{name}.mlp.fc1", _norm(w, f"{name}.norm2", x))
            inner = inner * 0.5 * (1 + erf(inner / np.sqrt(2)))
            x = x + _linear(w, f"{name}.mlp.fc2", inner)
        maps.append(_norm(w, f"{SWIN}norm{stage}", x).transpose(2, 0, 1))
        if stage + 1 < len(config.depths):
            name = f"{SWIN}layers.{stage}.downsample"
            x = np.pad(x, ((0, x.shape[0] % 2), (0, x.shape[1] % 2), (0, 0)))
            x = np.concatenate([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], -1)
            x = _norm(w, f"{name}.norm", x) @ w[f"{name}.reduction.weight"].T
    return maps


def _window_attention(w, name, config, heads, x, shift):
    """Dense attention over the padded map; other windows are out, other bands 100 below."""
    window = config.window_size
    height, across, channels = x.shape
    normed = np.pad(
        _norm(w, f"{name}.norm1", x), ((0, -height % window), (0, -across % window), (0, 0))
    )
    h, v = normed.shape[:2]
    rows, columns = (grid.ravel() for grid in np.mgrid[:h, :v])
    rows, columns = (rows - shift) % h, (columns - shift) % v
    same = (rows // window)[:, None] * v + (columns // window)[:, None]
    same = same == same.T
    band = (
        3 * ((rows >= h - window).astype(int) + (rows >= h - shift))
        + (columns >= v - window)
        + (columns >= v - shift)
    )
    penalty = np.where(same, 0.0, -np.inf)
    if shift:
        penalty = penalty - 100.0 * (band[:, None] != band[None])
    down = (rows % window)[:, None] - (rows % window)[None] + window - 1
    right = (columns % window)[:, None] - (columns % window)[None] + window - 1
    table = w[f"{name}.attn.relative_position_bias_table"][down * (2 * window - 1) + right]
    qkv = _linear(w, f"{name}.attn.qkv", normed.reshape(-1, channels)).reshape(h * v, 3, heads, -1)
    result = []
    for head in range(heads):
        q, k, value = qkv[:, :, head].transpose(1, 0, 2)
        result.append(_softmax(q @ k.T / np.sqrt(q.shape[1]) + table[..., head] + penalty) @ value)
    out = _linear(w, f"{name}.attn.proj", np.concatenate(result, 1)).reshape(h, v, channels)
    return out[:height, :across]


def _self_attention(w, name, config, states, position):
    matrix, bias = w[f"{name}.self_attn.in_proj_weight"], w[f"{name}.self_attn.in_proj_bias"]
    q, k, v = (
        (source @ part.T + offset).reshape(len(states), config.num_heads, -1)
        for source, part, offset in zip(
            (states + position, states + position, states),
            np.split(matrix, 3),
            np.split(bias, 3),
            strict=True,
        )
    )
    heads = [
        _softmax(q[:, i] @ k[:, i].T / np.sqrt(q.shape[2])) @ v[:, i]
        for i in range(config.num_heads)
    ]
    return _linear(w, f"{name}.self_attn.out_proj", np.concatenate(heads, 1))


def _refine(w, states, boxes):
    logits = np.log(np.maximum(boxes, 1e-3) / np.maximum(1 - boxes, 1e-3))
    return _sigmoid(_mlp(w, "bbox_embed.0", states, 3) + logits)


def _strided(x, kernel, bias):
    """3x3 convolution, stride 2, one pixel of zeros around."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    height, across = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
    result = np.empty((len(kernel), height, across))
    for row in range(height):
        for column in range(across):
            patch = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            result[:, row, column] = (kernel * patch).sum((1, 2, 3)) + bias
    return result


def _group_norm(x, weight, bias, groups):
    parts = x.reshape(groups, -1)
    parts = (parts - parts.mean(1, keepdims=True)) / np.sqrt(parts.var(1, keepdims=True) + 1e-5)
    return parts.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def _norm(w, name, x):
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return normed * w[f"{name}.weight"] + w[f"{name}.bias"]


def _linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _feedforward(w, name, x):
    return _linear(w, f"{name}.linear2", np.maximum(_linear(w, f"{name}.linear1", x), 0))


def _mlp(w, name, x, depth):
    for number in range(depth):
        x = _linear(w, f"{name}.layers.{number}", x)
        x = np.maximum(x, 0) if number < depth - 1 else x
    return x


def _softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))
