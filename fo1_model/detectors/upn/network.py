"""UPN's network: transformers' Swin and Deformable DETR layers, asked by learned prompts.

The prompts stand in place of classes. The layers are composed, not edited, but for what deformable
attention samples with: `grid_sample` one level after the other, so nothing is compiled. What the
library has not is written here: the pyramid of maps, query selection by a prompt and the decoder's
loop. Only inference: UPN's training code is not public.

Images of a batch have one size. So nothing is padded, and the released code's masks, which would be
empty, and valid ratios, which would be 1, are left out.

Shapes: B images, H x W px, L levels, S positions of all levels, K queries, D hidden_dim.
Boxes are cxcywh in [0, 1] of the image.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DeformableDetrConfig, SwinBackbone, SwinConfig
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrDecoderLayer,
    DeformableDetrEncoderLayer,
    DeformableDetrMLPPredictionHead,
    DeformableDetrMultiscaleDeformableAttention,
)

from fo1_model.boxes import sine_embedding
from fo1_model.opn.config import PROMPTS

Prompt = Literal["coarse", "fine"]
"""Granularity that is asked for."""

MAP_TEMPERATURE = 20.0
"""Temperature of the maps' position embedding (`configs/upn_large.py`)."""
BOX_TEMPERATURE = 10_000.0
"""Temperature of the boxes' position embedding (`models/utils/detr_utils.py`)."""
ANCHOR_SIDE = 0.05
"""Side of an anchor on the finest level, as a share of the image (same file).

It doubles from level to level.
"""
ANCHOR_MARGIN = 0.01
"""Distance from 0 and 1 within which an anchor's centre or side is not valid (same file)."""
LOGIT_EPS = 1e-3
"""Smallest share with which boxes are taken back through the sigmoid (same file)."""
NORM_GROUPS = 32
"""Groups of the norm after an input projection (`models/architecture/upn_model.py`)."""


@dataclass(frozen=True, kw_only=True)
class UPNNetworkConfig:
    """Sizes of network and input; the defaults are those published (`configs/upn_large.py`)."""

    embed_dim: int = 192
    """Channels of Swin's first stage; they double from stage to stage (Swin-L)."""
    depths: tuple[int, ...] = (2, 2, 18, 2)
    """Swin blocks of each stage; every stage gives a map, at strides 4, 8, 16, 32 px."""
    backbone_heads: tuple[int, ...] = (6, 12, 24, 48)
    """Attention heads of each Swin stage."""
    window_size: int = 12
    """Side of Swin's windows, in positions (pretrained at 384 px; images may have any size)."""
    hidden_dim: int = 256
    """Width of encoder and decoder."""
    num_levels: int = 5
    """Number of maps attended to; those beyond Swin's four come from strided convolutions."""
    num_heads: int = 8
    """Attention heads of encoder and decoder."""
    num_points: int = 4
    """Points that a head samples on each level."""
    feedforward_dim: int = 2048
    """Inner width of the feed-forward layers."""
    num_encoder_layers: int = 6
    """Number of encoder layers."""
    num_decoder_layers: int = 6
    """Number of decoder layers; the last one answers."""
    num_queries: int = 900
    """Boxes out; fewer for images with fewer positions."""
    short_side_px: int = 800
    """Length that the image's shorter side is scaled to, px (`inference_wrapper.py`)."""
    long_side_px: int = 1333
    """Most that the longer side may have, but for rounding, px (same file)."""
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean that is subtracted from RGB in [0, 1] (same file)."""
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation that RGB is divided by after that (same file)."""


class LevelwiseSampling(nn.Module):
    """What transformers' deformable attention reads the maps with, one level after the other.

    The library holds the samples of all levels at once: an encoder layer then needs 5.6 GiB and
    23 s on one core for an image of 1333 x 800 px, here 1.9 GiB and 8 s.
    """

    def forward(
        self,
        value: Tensor,
        spatial_shapes: Tensor,  # noqa: ARG002 - the library's signature
        spatial_shapes_list: list[tuple[int, int]],
        level_start_index: Tensor | None,  # noqa: ARG002
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,  # noqa: ARG002
    ) -> Tensor:
        """Return weighted sums of bilinear samples, which are zero off the map.

        Args:
            value: [B, S, M, D / M] for M heads.
            spatial_shapes: Not used; here because the library passes it.
            spatial_shapes_list: Height and width of each level.
            level_start_index: Not used.
            sampling_locations: float32[B, N, M, L, P, 2], (x, y) of P points as shares of the map.
            attention_weights: [B, N, M, L, P].
            im2col_step: Not used.

        Returns:
            [B, N, D].
        """
        batch, _, heads, width = value.shape
        sums = []
        tables = value.split([height * across for height, across in spatial_shapes_list], dim=1)
        for level, (shape, table) in enumerate(zip(spatial_shapes_list, tables, strict=True)):
            maps = table.permute(0, 2, 3, 1).reshape(batch * heads, width, *shape)
            places = (2 * sampling_locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
            samples = F.grid_sample(maps, places, padding_mode="zeros", align_corners=False)
            weights = attention_weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)
            sums.append((samples * weights).sum(-1))
        return torch.stack(sums).sum(0).view(batch, heads * width, -1).transpose(1, 2)


class UPN(nn.Module):
    """The proposal network, for inference."""

    def __init__(self, config: UPNNetworkConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.hidden_dim
        self.backbone = SwinBackbone(_swin_config(config))
        # Its own last norm belongs to an output that is not used.
        self.backbone.swin.layernorm = nn.Identity()  # type: ignore[assignment]
        self.input_projections = nn.ModuleList(_input_projections(self.backbone.channels, config))
        self.level_embedding = nn.Parameter(torch.randn(config.num_levels, dim))
        layers = _layer_config(config)
        self.encoder = nn.ModuleList(
            DeformableDetrEncoderLayer(layers) for _ in range(config.num_encoder_layers)
        )
        self.proposal_projection = nn.Linear(dim, dim)
        self.proposal_norm = nn.LayerNorm(dim)
        self.proposal_box_head = DeformableDetrMLPPredictionHead(dim, dim, 4, 3)
        self.prompts = nn.ParameterDict({name: torch.randn(1, dim) for name in PROMPTS})
        self.queries = nn.Parameter(torch.randn(config.num_queries, dim))
        self.query_position = DeformableDetrMLPPredictionHead(2 * dim, dim, dim, 2)
        self.decoder = nn.ModuleList(
            DeformableDetrDecoderLayer(layers) for _ in range(config.num_decoder_layers)
        )
        for module in self.modules():
            if isinstance(module, DeformableDetrMultiscaleDeformableAttention):
                module.attn = LevelwiseSampling()  # type: ignore[assignment]
        self.decoder_norm = nn.LayerNorm(dim)
        self.box_head = DeformableDetrMLPPredictionHead(dim, dim, 4, 3)  # one for all layers

    def forward(self, pixels: Tensor, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """Return scores and boxes of a batch of images, in no order.

        Args:
            pixels: float32[B, 3, H, W], normalised RGB, without padding.
            prompt: The granularity that is asked for.

        Returns:
            Logits float32[B, K], whose sigmoid is the score, and boxes float32[B, K, 4].
        """
        maps = self._maps(pixels)
        shapes = [(int(one.shape[-2]), int(one.shape[-1])) for one in maps]
        vector = self.prompts[prompt]
        memory = self._encode(maps, shapes)
        return self._decode(memory, self._propose(memory, shapes, vector), shapes, vector)

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        """Return maps [B, D, h, w], fine to coarse (`upn_model.py`, forward_backbone_encoder).

        The first level beyond Swin's comes from its last map, a further one from the level before.
        """
        sources = list(self.backbone(pixels).feature_maps)
        sources.append(sources[-1])
        maps: list[Tensor] = []
        for level, projection in enumerate(self.input_projections):
            maps.append(projection(sources[level] if level < len(sources) else maps[-1]))
        return maps

    def _encode(self, maps: list[Tensor], shapes: list[tuple[int, int]]) -> Tensor:
        """Return encoded positions [B, S, D] of all levels (`models/encoder/upn_encoder.py`).

        A position is embedded by the share of the map that lies above and left of it, itself
        included.
        """
        dim, device = self.config.hidden_dim, maps[0].device
        embeddings = [
            sine_embedding(_grid(shape, 1.0, device), dim // 2, MAP_TEMPERATURE)
            + self.level_embedding[level]
            for level, shape in enumerate(shapes)
        ]
        embedding = torch.cat(embeddings)[None]
        states = torch.cat([one.flatten(2).transpose(1, 2) for one in maps], 1)
        points = torch.cat(
            [_grid(shape, 0.5, device).flip(-1) for shape in shapes]
        )  # (x, y) centres
        points = points[None, :, None].expand(len(states), -1, len(shapes), -1)
        for layer in self.encoder:
            states = layer(
                states,
                None,
                spatial_position_embeddings=embedding,
                reference_points=points,
                **_spatial(shapes, device),
            )
        return states

    def _propose(self, memory: Tensor, shapes: list[tuple[int, int]], prompt: Tensor) -> Tensor:
        """Return boxes [B, K, 4] to start from, those of the positions that fit the prompt best.

        Best is the largest product with the prompt. Positions without a valid anchor stay in the
        choice, with a state of zero and a box of ones (`deformable_transformer.py`,
        get_two_stage_proposal). Only their boxes go on: the queries' content is learned.
        """
        anchors, valid = anchor_logits(shapes, memory.device)
        states = torch.where(valid[:, None], memory, memory.new_zeros(()))
        states = self.proposal_norm(self.proposal_projection(states))
        count = min(self.config.num_queries, memory.shape[1])
        chosen = _product(states, prompt).topk(count, dim=1).indices
        states = states.gather(1, chosen[..., None].expand(-1, -1, states.shape[-1]))
        return (self.proposal_box_head(states).float() + anchors[chosen]).sigmoid()

    def _decode(
        self, memory: Tensor, boxes: Tensor, shapes: list[tuple[int, int]], prompt: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the last layer's logits [B, K] and boxes [B, K, 4] (`decoder/upn_decoder.py`).

        Between layers, boxes are refined from the bare states; the last ones from the normed
        states.
        """
        states = self.queries[: boxes.shape[1]].expand(len(boxes), -1, -1)
        for number, layer in enumerate(self.decoder):
            if number:
                boxes = self._refined(states, boxes)
            # The embedding's order is y, x, width, height.
            embedding = sine_embedding(
                boxes[..., [1, 0, 2, 3]], self.config.hidden_dim // 2, BOX_TEMPERATURE
            )
            states = layer(
                states,
                object_queries_position_embeddings=self.query_position(embedding),
                reference_points=boxes[:, :, None].expand(-1, -1, len(shapes), -1),
                encoder_hidden_states=memory,
                **_spatial(shapes, memory.device),
            )
        states = self.decoder_norm(states)
        return _product(states, prompt), self._refined(states, boxes)

    def _refined(self, states: Tensor, boxes: Tensor) -> Tensor:
        """Return boxes [B, K, 4] moved by what the head reads in the states."""
        logits = (boxes.clamp(min=LOGIT_EPS) / (1 - boxes).clamp(min=LOGIT_EPS)).log()
        return (self.box_head(states).float() + logits).sigmoid()


def anchor_logits(shapes: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the anchors of all positions before the sigmoid, and which of them are valid.

    An anchor is a square share of the image around a position's centre; one that is not valid is
    infinite (`detr_utils.py`, gen_encoder_output_proposals).

    Args:
        shapes: Height and width of each level.
        device: Where the anchors are made.

    Returns:
        Anchors float32[S, 4] and flags bool[S].
    """
    anchors = []
    for level, shape in enumerate(shapes):
        centers = _grid(shape, 0.5, device).flip(-1)
        anchors.append(torch.cat([centers, torch.full_like(centers, ANCHOR_SIDE * 2.0**level)], 1))
    shares = torch.cat(anchors)
    valid = ((shares > ANCHOR_MARGIN) & (shares < 1 - ANCHOR_MARGIN)).all(1)
    return (shares / (1 - shares)).log().masked_fill(~valid[:, None], torch.inf), valid


def _grid(shape: tuple[int, int], offset: float, device: torch.device) -> Tensor:
    """Return (y, x) of each position plus the offset as shares of the map, float32[h * w, 2]."""
    axes = [
        (torch.arange(side, device=device, dtype=torch.float32) + offset) / side for side in shape
    ]
    return torch.cartesian_prod(*axes)


def _product(states: Tensor, prompt: Tensor) -> Tensor:
    """Return the product of states [B, N, D] and the prompt, float32[B, N] (`contrastive.py`).

    It has no scale and no bias. It is no matrix product, which autocast would round to bfloat16,
    and make ties of scores.
    """
    return (states.float() * prompt.float()).sum(-1)


def _spatial(shapes: list[tuple[int, int]], device: torch.device) -> dict[str, object]:
    """Return the levels as transformers' layers take them."""
    return {"spatial_shapes": torch.tensor(shapes, device=device), "spatial_shapes_list": shapes}


def _input_projections(channels: list[int], config: UPNNetworkConfig) -> list[nn.Module]:
    """Return 1x1 convolutions for the backbone's maps and strided 3x3 ones for the levels beyond.

    A GroupNorm follows each. `channels` are those of the backbone's maps.
    """
    dim = config.hidden_dim
    extra = config.num_levels - len(channels)
    convolutions = [nn.Conv2d(width, dim, 1) for width in channels]
    sources = [channels[-1], *[dim] * (extra - 1)][:extra]
    convolutions += [nn.Conv2d(width, dim, 3, stride=2, padding=1) for width in sources]
    return [nn.Sequential(one, nn.GroupNorm(NORM_GROUPS, dim)) for one in convolutions]


def _swin_config(config: UPNNetworkConfig) -> SwinConfig:
    """Return Swin as in `models/backbone/swin.py`, with a norm on each map.

    Windows are padded before they are shifted. timm's Swin pads after the shift, which is not the
    same where a map is no multiple of the window.
    """
    return SwinConfig(  # type: ignore[call-arg]
        embed_dim=config.embed_dim,
        depths=list(config.depths),
        num_heads=list(config.backbone_heads),
        window_size=config.window_size,
        drop_path_rate=0.0,
        out_features=[f"stage{number + 1}" for number in range(len(config.depths))],
    )


def _layer_config(config: UPNNetworkConfig) -> DeformableDetrConfig:
    """Return what transformers' encoder and decoder layers read: post-norm, ReLU, no dropout.

    Each layer is attention, norm, feed-forward, norm; a decoder's has self-attention over the
    queries and a norm before. Points of a box are offset in units of half its sides, divided by the
    number of points.
    """
    return DeformableDetrConfig(  # type: ignore[call-arg]
        d_model=config.hidden_dim,
        num_feature_levels=config.num_levels,
        encoder_attention_heads=config.num_heads,
        decoder_attention_heads=config.num_heads,
        encoder_n_points=config.num_points,
        decoder_n_points=config.num_points,
        encoder_ffn_dim=config.feedforward_dim,
        decoder_ffn_dim=config.feedforward_dim,
        activation_function="relu",
        dropout=0.0,
        attn_implementation="sdpa",
    )
