"""FLOPs of training on one batch of a Qwen2.5-VL model by a formula, worked out by hand, from
shapes alone.

A matrix costs its forward pass once; once more where a gradient flows back through it; and once
more where it trains. So a frozen tower costs one, a frozen decoder behind trained regions two, and
what trains three. Attention has no weights: with a gradient it costs three, for both of its factors
get one.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from fo1_model.batch import IGNORE, Batch
from fo1_model.model import FO1Model


def flops_by_hand(model: FO1Model, batch: Batch) -> float:
    """FLOPs of the forward and backward pass of a batch; what trains is read from
    ``requires_grad``."""
    vision = _primary(model, batch)
    regions = _Path()
    for index, grid in enumerate(batch.grids):
        auxiliary, maps = _Path(), []
        if model.region_encoder.use_auxiliary and model.auxiliary is not None:
            maps = _davit(auxiliary, model.auxiliary.model, tuple(batch.auxiliary[index].shape[1:]))
        pooled = _regions(
            model,
            grid,
            len(batch.boxes[index]),
            maps,
            primary_flows=vision.flows,
            auxiliary_flows=auxiliary.flows,
        )
        regions.joins(auxiliary, pooled)
    projector = _Path(flows=vision.flows)
    projector.matrices(model.image_projector, positions=_num_image_tokens(model, batch))
    inputs = (model.vlm.get_input_embeddings(), model.new_rows)
    trains = any(parameter.requires_grad for module in inputs for parameter in module.parameters())
    decoder = _Path(flows=regions.flows or projector.flows or trains)
    _decode(decoder, model, batch)
    return sum(path.flops for path in (vision, regions, projector, decoder))


class _Path:
    """FLOPs of modules one after another, in the order in which they run."""

    def __init__(self, *, flows: bool = False) -> None:
        """flows: whether the input gets a gradient; afterwards, whether the output does."""
        self.flops, self.flows = 0.0, flows

    def matrices(self, *modules: nn.Module, positions: float) -> None:
        """Every matrix or kernel of the modules, applied at so many positions."""
        for module in modules:
            for weight in module.parameters():
                shape = getattr(
                    weight, "ds_shape", weight.shape
                )  # under ZeRO-3 a rank holds a part of it
                if len(shape) > 1:
                    passes = 1 + self.flows + weight.requires_grad
                    self.flops += 2.0 * positions * math.prod(shape) * passes
                self.flows = self.flows or weight.requires_grad

    def attention(self, pairs: float, width: int) -> None:
        """Scores and sums of values over so many pairs of query and key, all heads together `width`
        wide."""
        self.flops += 4.0 * pairs * width * (3 if self.flows else 1)

    def sums(self, pairs: float, width: int) -> None:
        """Weighted sums whose weights get no gradient, over so many pairs of weight and value."""
        self.flops += 2.0 * pairs * width * (2 if self.flows else 1)

    def joins(self, *others: _Path) -> None:
        """Take in paths that end here."""
        self.flops += sum(other.flops for other in others)
        self.flows = self.flows or any(other.flows for other in others)


def _primary(model: FO1Model, batch: Batch) -> _Path:
    """The ViT with its windows, and the merger."""
    visual: Any = model.family.vision_tower(model.vlm)
    config = visual.config
    patches = sum(rows * columns for rows, columns in batch.grids)
    side = config.window_size // config.patch_size
    windowed = sum(_squares(rows, side) * _squares(columns, side) for rows, columns in batch.grids)
    full = sum((rows * columns) ** 2 for rows, columns in batch.grids)
    path = _Path()
    path.matrices(visual.patch_embed, positions=patches)
    for index, block in enumerate(visual.blocks):
        path.matrices(block.norm1, block.attn.qkv, positions=patches)
        path.attention(
            full if index in config.fullatt_block_indexes else windowed, config.hidden_size
        )
        path.matrices(block.attn.proj, block.norm2, block.mlp, positions=patches)
    path.matrices(visual.merger, positions=_num_image_tokens(model, batch))
    return path


def _squares(length: int, side: int) -> int:
    """Sum of the squares of the pieces of a length cut at every `side`: windows are rows times
    columns."""
    return length // side * side**2 + (length % side) ** 2


def _num_image_tokens(model: FO1Model, batch: Batch) -> int:
    return sum(model.family.num_image_tokens(grid) for grid in batch.grids)


def _davit(path: _Path, davit: Any, size: tuple[int, ...]) -> list[tuple[int, int]]:
    """One image of (height, width) through timm's DaViT; returns cells and channels of its four
    maps."""
    rows, columns = -(-size[0] // 4), -(-size[1] // 4)
    path.matrices(davit.stem, positions=rows * columns)
    maps = []
    for stage in davit.stages:
        if not isinstance(stage.downsample, nn.Identity):
            rows, columns = -(-rows // 2), -(-columns // 2)
            path.matrices(stage.downsample, positions=rows * columns)
        cells = rows * columns
        for spatial, channel in stage.blocks:
            height, width = spatial.window_size
            # A window over the edge is filled up with zeros, which attend and are attended to.
            inside = -(-rows // height) * height * -(-columns // width) * width
            path.matrices(spatial.cpe1, positions=cells)
            path.matrices(spatial.attn.qkv, positions=inside)
            path.attention(inside * height * width, spatial.dim)
            path.matrices(spatial.attn.proj, positions=inside)
            path.matrices(
                spatial.cpe2, spatial.mlp, channel.cpe1, channel.attn.qkv, positions=cells
            )
            dim = channel.attn.proj.in_features
            heads = getattr(channel.attn, "groups", None) or channel.attn.num_heads
            path.attention(
                cells * dim // heads, dim
            )  # a head's channels attend to each other, over all cells
            path.matrices(channel.attn.proj, channel.cpe2, channel.mlp, positions=cells)
        maps.append((cells, dim))
    return maps


def _regions(
    model: FO1Model,
    grid: tuple[int, int],
    num_boxes: int,
    auxiliary: list[tuple[int, int]],
    *,
    primary_flows: bool,
    auxiliary_flows: bool,
) -> _Path:
    """One image's pyramid, pooling as one product of boxes and cells a level, and connector."""
    encoder, cells = model.region_encoder, float(grid[0] * grid[1])
    levels = [
        (_Path(flows=auxiliary_flows), float(inner), channels) for inner, channels in auxiliary
    ]
    if encoder.pyramid is not None:
        each = encoder.pyramid.children()
        levels += [_pyramid_level(level, cells, _Path(flows=primary_flows)) for level in each]
    elif encoder.use_primary:
        channels = model.family.primary_dim * model.family.num_levels
        levels.append((_Path(flows=primary_flows), cells, channels))
    for path, inner, channels in levels:
        path.sums(num_boxes * inner, channels)
    whole = _Path()
    whole.joins(*(path for path, _, _ in levels))
    norms = [norm for norm in (encoder.auxiliary_norm, encoder.primary_norm) if norm is not None]
    whole.matrices(*norms, encoder.connector, positions=num_boxes)
    return whole


def _pyramid_level(level: nn.Module, cells: float, path: _Path) -> tuple[_Path, float, int]:
    """One level of SimpleFP over a map of so many cells; returns its path, cells and channels."""
    channels = 0
    for module in level.children():
        path.matrices(
            module, positions=cells
        )  # of a transposed convolution: positions of its input
        if isinstance(module, nn.ConvTranspose2d):
            cells *= 4
        elif isinstance(module, nn.MaxPool2d):
            cells /= 4
        elif isinstance(module, nn.Conv2d):
            channels = module.out_channels
    return path, cells, channels


def _decode(path: _Path, model: FO1Model, batch: Batch) -> None:
    """Decoder layers at the tokens, and the head at supervised positions."""
    decoder: Any = model.family.language_model(model.vlm)
    lengths = _lengths(batch)
    tokens, pairs = sum(lengths), sum(length * (length + 1) // 2 for length in lengths)
    for layer in decoder.layers:
        attention = layer.self_attn
        path.matrices(
            layer.input_layernorm,
            attention.q_proj,
            attention.k_proj,
            attention.v_proj,
            positions=tokens,
        )
        path.attention(pairs, attention.num_heads * attention.head_dim)
        path.matrices(attention.o_proj, layer.post_attention_layernorm, layer.mlp, positions=tokens)
    supervised = int((batch.labels[:, 1:] != IGNORE).sum())
    rows = model.new_rows if model.new_output_rows is None else model.new_output_rows
    path.matrices(decoder.norm, positions=tokens)
    path.matrices(model.vlm.get_output_embeddings(), rows, positions=supervised)


def _lengths(batch: Batch) -> list[int]:
    """Tokens of each sample, padding left out."""
    if batch.places is None:
        return batch.attention_mask.sum(dim=1).tolist()
    starts = (batch.places[0] == 0).nonzero()[:, 0].tolist()
    ends = [*starts[1:], batch.places.shape[1]]
    return [end - start for start, end in zip(starts, ends, strict=True)]
