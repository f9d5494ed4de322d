"""OPN: transformers' OmDet-Turbo blocks with learned prompts in place of the text towers.

The blocks (backbone, hybrid encoder, decoder layers and heads) are composed, not edited. The
decoder's loop is written here because the library's takes no denoising queries, gives all layers
only in training, and fails when an image has fewer feature positions than queries (paper 3.2 names
OmDet-Turbo; the prompts are ours).

Shapes: B images, S side px, K queries, N noised queries, L decoder layers, D hidden_dim,
E prompt_dim.
Boxes inside the network are cxcywh in [0, 1] of the square input.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import OmDetTurboConfig
from transformers.models.omdet_turbo.modeling_omdet_turbo import (
    OmDetTurboDecoder,
    OmDetTurboHybridEncoder,
    OmDetTurboVisionBackbone,
    get_class_similarity,
)

from fo1_model.errors import SettingError
from fo1_model.opn.config import PROMPTS, OPNConfig
from fo1_model.opn.denoising import noised_queries
from fo1_model.weights import read_json

INITIAL_BIAS = -4.0
"""Value that the logit bias starts at.

Without it a cosine score starts at sigmoid 0.5 on every query, and objects are few.
"""


@dataclass(frozen=True, kw_only=True)
class OPNOutputs:
    """What one forward gives."""

    logits: Tensor
    """Objectness before the sigmoid, float32[L, B, K]; the last layer is the answer."""
    boxes: Tensor
    """Boxes of every layer, float32[L, B, K, 4] cxcywh in [0, 1] of the square."""
    encoder_logits: Tensor
    """Objectness of the selected encoder positions, float32[B, K]."""
    encoder_boxes: Tensor
    """Boxes of the selected encoder positions, float32[B, K, 4]."""
    noised_logits: Tensor | None = None
    """Objectness of the noised queries, float32[L, B, N]; None without denoising."""
    noised_boxes: Tensor | None = None
    """Boxes of the noised queries, float32[L, B, N, 4]; None without denoising."""
    noised_real: Tensor | None = None
    """Which noised queries are no padding, bool[B, N]; None without denoising."""
    noised_positives: tuple[Tensor, ...] = ()
    """Indices of the queries to restore, one int64 tensor an image: its boxes, per group."""


class OPN(nn.Module):
    """The proposal network.

    Raises:
        SettingError: The backbone does not give the configured channels.
    """

    def __init__(self, config: OPNConfig) -> None:
        super().__init__()
        self.config = config
        omdet = omdet_config(config)
        self.backbone = OmDetTurboVisionBackbone(omdet)
        channels = tuple(self.backbone.vision_backbone.channels)
        if channels != config.backbone_channels:
            raise SettingError(
                f"OPNConfig.backbone_channels={config.backbone_channels}: {config.backbone} gives "
                f"{channels}"
            )
        if config.backbone_layout == "channels_first":
            # Unused in this layout: its parameters would never get a gradient.
            self.backbone.layer_norms = nn.ModuleList()
        self.encoder = OmDetTurboHybridEncoder(omdet)
        self.decoder = OmDetTurboDecoder(omdet)
        if config.normalization == "group":
            _batch_to_group_norm(self.encoder)
            _batch_to_group_norm(self.decoder)
        self.object_prompts = nn.Parameter(torch.randn(len(PROMPTS), config.prompt_dim))
        self.task_prompts = nn.Parameter(torch.randn(len(PROMPTS), config.prompt_dim))
        self.logit_bias = nn.Parameter(torch.tensor([INITIAL_BIAS]))  # DeepSpeed refuses a scalar
        if config.denoising_groups:
            self.noised_query = nn.Parameter(torch.randn(config.hidden_dim))

    def forward(
        self,
        pixels: Tensor,
        prompts: Tensor | None = None,
        boxes: Sequence[Tensor] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> OPNOutputs:
        """Return boxes and scores of a batch of images.

        Args:
            pixels: float32[B, 3, S, S], normalised RGB.
            prompts: int64[B], rows of PROMPTS; None asks for coarse on all.
            boxes: The ground truth, B tensors float32[N_i, 4]. In training it makes the denoising
                queries when the config asks for them.
            seeds: B seeds that draw the images' noise, so that a resumed run repeats it.

        Raises:
            ValueError: Denoising without seeds.
        """
        if prompts is None:
            prompts = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)
        maps = self.encoder(list(self.backbone(pixels)), return_dict=True).extracted_states
        vision = self.decoder._get_encoder_input(maps)
        content, box_logits, encoder_logits = self._select(vision[0], vision[2], prompts)
        encoder_boxes = box_logits.sigmoid()
        if self.training:
            # Queries start at the encoder's choice; the decoder's loss must not move it (RT-DETR).
            content, box_logits = content.detach(), box_logits.detach()
        noised = None
        if self.training and self.config.denoising_groups and boxes is not None:
            if seeds is None:
                raise ValueError(
                    "OPN.forward(seeds=None): denoising needs a seed an image for its noise"
                )
            noised = noised_queries(
                boxes,
                seeds,
                num_queries=content.shape[1],
                groups=self.config.denoising_groups,
                scale=self.config.box_noise_scale,
            )
            # A batch without boxes uses no noised query; every rank must reduce the same gradients.
            content = content + 0.0 * self.noised_query
        if noised is None:
            logits, refined = self._decode(content, box_logits.sigmoid(), vision, prompts)
            return OPNOutputs(
                logits=logits,
                boxes=refined,
                encoder_logits=encoder_logits,
                encoder_boxes=encoder_boxes,
            )
        split = noised.real.shape[1]
        content = torch.cat(
            [self.noised_query.expand(len(content), split, -1).to(content.dtype), content], 1
        )
        box_logits = torch.cat([noised.box_logits, box_logits], 1)
        logits, refined = self._decode(content, box_logits.sigmoid(), vision, prompts, noised.mask)
        return OPNOutputs(
            logits=logits[:, :, split:],
            boxes=refined[:, :, split:],
            encoder_logits=encoder_logits,
            encoder_boxes=encoder_boxes,
            noised_logits=logits[:, :, :split],
            noised_boxes=refined[:, :, :split],
            noised_real=noised.real,
            noised_positives=noised.positives,
        )

    def _objectness(self, states: Tensor, head: nn.Module, prompts: Tensor) -> Tensor:
        """Return the scaled cosine of states and the projected prompt, plus the bias.

        Args:
            states: float[B, K, D].
            head: Projects the prompts [B, E] to [B, D].
            prompts: int64[B], rows of PROMPTS.

        Returns:
            float32[B, K].
        """
        target = head(self.object_prompts[prompts]).unsqueeze(-1)
        return (
            get_class_similarity("cosine", states.float(), target.float()).squeeze(-1)
            + self.logit_bias
        )

    def _select(
        self, features: Tensor, shapes: list[tuple[int, int]], prompts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best positions of all levels.

        Returns:
            Content [B, K, D], box logits [B, K, 4] and objectness [B, K].
        """
        decoder = self.decoder
        # The anchors are cached, and training must be able to use them after an inference.
        with torch.inference_mode(False):
            anchors, valid = decoder.generate_anchors(
                tuple(shapes), device=features.device, dtype=torch.float32
            )
        states = decoder.encoder_vision_features(torch.where(valid, features, 0.0))
        objectness = self._objectness(states, decoder.encoder_class_head, prompts)
        num_queries = min(self.config.num_queries, features.shape[1])
        # Border positions have infinite anchors: taken last, and finite if taken at all.
        ranked = objectness.detach().masked_fill(~valid.squeeze(-1), -torch.inf)
        chosen = ranked.topk(num_queries, dim=1).indices
        anchors = anchors.clamp(-16.0, 16.0).expand(len(features), -1, -1)
        states = states.gather(1, chosen[..., None].expand(-1, -1, states.shape[-1]))
        anchors = anchors.gather(1, chosen[..., None].expand(-1, -1, 4))
        return (
            states,
            decoder.encoder_bbox_head(states).float() + anchors,
            objectness.gather(1, chosen),
        )

    def _decode(
        self,
        content: Tensor,
        reference: Tensor,
        vision: tuple[Tensor, Tensor, list[tuple[int, int]], Tensor],
        prompts: Tensor,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the decoder's layers over the queries and one task token.

        Args:
            content: Where the queries start, float[B, K, D].
            reference: The boxes that they start from, float32[B, K, 4] cxcywh in [0, 1].
            vision: The encoded maps, as the library's decoder flattens them.
            prompts: int64[B], rows of PROMPTS.
            mask: What is added to attention; None lets every query see every other.

        Returns:
            Logits float32[L, B, K] and boxes float32[L, B, K, 4].
        """
        decoder = self.decoder
        features, shapes, shape_list, level_starts = vision
        task = decoder.task_project(decoder.task_encoder(self.task_prompts[prompts])).unsqueeze(0)
        logits, boxes = [], []
        previous = reference
        for i, layer in enumerate(decoder.layers):
            content, task, _, _ = layer(
                content,
                task,
                reference.to(content.dtype),
                features,
                shapes,
                shape_list,
                level_start_index=level_starts,
                attention_mask=mask,
                query_position=decoder.query_position_head(reference.to(content.dtype)),
            )
            delta = decoder.decoder_bbox_head[i](content).float()
            logits.append(self._objectness(content, decoder.decoder_class_head[i], prompts))
            # A layer's box loss also reaches the layer before it: OmDet-Turbo looks forward twice.
            boxes.append((delta + torch.logit(previous, eps=1e-5)).sigmoid())
            previous = (delta + torch.logit(reference, eps=1e-5)).sigmoid()
            reference = previous.detach() if self.training else previous
        return torch.stack(logits), torch.stack(boxes)


def new_opn(config: OPNConfig, seed: int) -> OPN:
    """Return a randomly initialised OPN; the caller's random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return OPN(config)


def save_opn(model: OPN, folder: str | Path) -> None:
    """Write config.json and model.safetensors into `folder`, which is made when it is missing.

    The same weights give the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(model.config.to_dict(), indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")


def load_opn(folder: str | Path) -> OPN:
    """Return the network that `save_opn` wrote, on the CPU, for inference.

    Raises:
        SettingError: A file is missing or unreadable, or the weights are not the config's.
    """
    model = new_opn(load_config(folder), seed=0)
    file = Path(folder) / "model.safetensors"
    try:
        model.load_state_dict(load_file(file))
    except (RuntimeError, SafetensorError) as error:
        raise SettingError(f"{file}: holds no weights of its config.json: {error}") from error
    return model.eval()


def load_config(folder: str | Path) -> OPNConfig:
    """Return the config of the network in a folder that `save_opn` wrote.

    Raises:
        SettingError: A file is missing, or config.json is no such config.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise SettingError(
                f"OPN checkpoint {folder}: {name} is missing; give an OPN run's export folder"
            )
    values = read_json(folder / "config.json")
    if not isinstance(values, dict):
        raise SettingError(
            f"{folder}/config.json: no OPN's config; give an OPN run's export folder"
        )
    return OPNConfig.from_dict(values)


def omdet_config(config: OPNConfig) -> OmDetTurboConfig:
    """Return OmDet-Turbo's settings for our sizes; its text side, never built, keeps defaults."""
    channels_last = config.backbone_layout == "channels_last"
    backbone: dict[str, Any] = {
        "model_type": "timm_backbone",
        "backbone": config.backbone,
        "out_indices": list(config.backbone_indices),
    }
    if channels_last:
        # timm's Swin takes its size at construction; windows are cut as OmDet-Turbo cuts them.
        backbone |= {"img_size": config.image_size, "always_partition": True}
    return OmDetTurboConfig(
        backbone_config=backbone,
        apply_layernorm_after_vision_backbone=channels_last,
        image_size=config.image_size,
        encoder_in_channels=list(config.backbone_channels),
        vision_features_channels=[config.hidden_dim] * 3,
        encoder_hidden_dim=config.hidden_dim,
        decoder_hidden_dim=config.hidden_dim,
        encoder_dim_feedforward=config.feedforward_dim,
        decoder_dim_feedforward=config.feedforward_dim,
        encoder_attention_heads=config.num_heads,
        decoder_num_heads=config.num_heads,
        decoder_num_layers=config.num_decoder_layers,
        decoder_num_points=config.num_points,
        num_queries=config.num_queries,
        class_embed_dim=config.prompt_dim,
        task_encoder_hidden_dim=2 * config.prompt_dim,
    )


def _batch_to_group_norm(module: nn.Module) -> None:
    """Replace every BatchNorm2d by a GroupNorm with 8 channels a group, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(
                module,
                name,
                nn.GroupNorm(child.num_features // 8, child.num_features, eps=child.eps),
            )
        else:
            _batch_to_group_norm(child)
