"""FO1Model: a VLM, an auxiliary tower, a region encoder and new vocabulary rows, composed.

    ids ----- base embedding + new rows -------------------.
                                                           |
    pixels -- vision tower --+-- image tokens -------------+-- into their slots -- decoder -- head
                             |                             |
                             '-- map --.                   |
                                       +-- region encoder -'
    image --- DaViT ---------- maps ---'   + connector: region tokens

The head runs at supervised positions only.

Shape letters: B samples, L tokens, S supervised positions, I images, N boxes, D hidden size, T
image tokens, W their width, V vocabulary rows.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fo1_model.auxiliary_tower import AuxiliaryTower
from fo1_model.batch import IGNORE, Batch
from fo1_model.config import ModelConfig
from fo1_model.embeddings import NewTokenRows
from fo1_model.pretrained.config import FO1Config
from fo1_model.pretrained.methods import FO1PreTrainedModel
from fo1_model.region_encoder import RegionEncoder, build_connector
from fo1_model.region_pooling import FeatureMap
from fo1_model.vlms import build_family

_BLANK_SIDE = 56
"""Side in pixels of the image that stands in when a batch has none."""


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """What a forward pass gives."""

    loss_sum: Tensor
    """Cross entropy summed over supervised positions, each times its sample's loss weight,
    float32[]."""
    num_tokens: Tensor
    """Sum of those weights, float32[]; with weights of 1, the number of supervised positions."""
    by_sample: Tensor
    """What each sample adds to ``loss_sum`` and to ``num_tokens``, float64[samples, 2], without
    gradient."""
    logits: Tensor | None = None
    """Logits at supervised positions in reading order, float32[S, V], when asked for."""
    targets: Tensor | None = None
    """Targets at supervised positions, int64[S], when logits are asked for."""


class FO1Model(FO1PreTrainedModel):
    """A VLM that takes boxes and answers with region indices (paper 3).

    Args:
        config: Shapes and choices, and the ids of the processor that makes its batches.
        vlm: A VLM that is made already, taken as it is; without it, one with random weights.
        auxiliary: An auxiliary tower, likewise.
    """

    def __init__(
        self,
        config: FO1Config,
        *,
        vlm: Any = None,
        auxiliary: AuxiliaryTower | None = None,
    ) -> None:
        super().__init__(config)
        self.model_config = config.model_config
        self.token_ids = config.ids
        self.family = build_family(self.model_config.vlm)
        self.vlm = vlm or self.family.build()
        self._build(self.model_config, auxiliary)
        # Which of the base's modules stay whole, which of its weights are tied.
        self.post_init()
        config.text_config = self.vlm.config.get_text_config(decoder=True)

    def _build(self, config: ModelConfig, auxiliary: AuxiliaryTower | None) -> None:
        """Build what stands around the VLM."""
        family = self.family
        self.auxiliary = auxiliary
        if auxiliary is None and config.builds_auxiliary:
            self.auxiliary = AuxiliaryTower(config.auxiliary)
        self.region_encoder = RegionEncoder(
            config.region,
            config.connector,
            auxiliary_dims=config.auxiliary.dims,
            primary_dim=family.primary_dim * (1 if config.region.pyramid else family.num_levels),
            hidden_size=family.hidden_size,
        )
        self.image_projector = build_connector(
            config.image_projector_layers, family.hidden_size, family.hidden_size
        )
        rows = {"base_rows": family.vocabulary_rows, "hidden_size": family.hidden_size}
        self.new_rows = NewTokenRows(self.token_ids.new, **rows)
        # A tied base has one matrix for both ends, and so have the new rows.
        self.new_output_rows = None if family.tied else NewTokenRows(self.token_ids.new, **rows)

    @classmethod
    def from_release(cls, path: str | Path, **options: Any) -> "FO1Model":
        """Read a released checkpoint's folder; see ``fo1_model.release.load_release``."""
        from fo1_model.release import load_release

        return load_release(path, **options)[0]

    def train(self, mode: bool = True) -> "FO1Model":
        """Set training mode for what trains: a frozen tower keeps its stochastic depth off."""
        super().train(mode)
        # Dropping residuals of a frozen tower would only add noise to its features.
        for tower in (self.family.vision_tower(self.vlm), self.auxiliary):
            if tower is not None and _frozen(tower):
                tower.eval()
        return self

    def batch_loss(self, batch: Batch, *, return_logits: bool = False) -> ModelOutput:
        """Return the training loss of a batch.

        The head runs at supervised positions only, and in float32 from the logits on. Every
        trainable module takes part whatever the batch holds (see ``region_tokens``), so ranks never
        disagree on their collectives.

        Args:
            batch: Samples with labels.
            return_logits: Whether logits and targets are given back too.
        """
        hidden = self.decode(
            self.embed(batch), batch.attention_mask, batch.positions, places=batch.places
        )
        # Position i predicts token i + 1: labels are shifted here and nowhere else.
        targets = batch.labels[:, 1:]
        supervised = targets != IGNORE
        # Over a large vocabulary, logits of every position would be most of a step's memory.
        logits = self.logits(hidden[:, :-1][supervised])
        weights = batch.loss_weights[:, 1:][supervised]
        losses = F.cross_entropy(logits, targets[supervised], reduction="none") * weights
        return ModelOutput(
            loss_sum=losses.sum(),
            num_tokens=weights.sum(),
            by_sample=_by_sample(batch, supervised, losses.detach(), weights),
            logits=logits if return_logits else None,
            targets=targets[supervised] if return_logits else None,
        )

    def embed(self, batch: Batch) -> Tensor:
        """Return the decoder's input: embeddings with image and region tokens in their slots.

        Returns:
            float[B, L, D], wider than D where image tokens are (``VLMFamily.encode_images``); the
            rest has zeros there.

        Raises:
            ValueError: When slots and features do not match in number.
        """
        image_tokens, region_tokens, anchor = self.visual_tokens(batch)
        embeddings = _widen(self.embed_ids(batch.input_ids), image_tokens.shape[1])
        for slot, tokens in (
            (self.token_ids.image, image_tokens),
            (self.token_ids.region, region_tokens),
        ):
            mask = batch.input_ids == slot
            # masked_scatter takes too many features in silence, and region n would get n + 1's.
            if int(mask.sum()) != len(tokens):
                raise ValueError(
                    f"{int(mask.sum())} slots of id {slot} for {len(tokens)} features; "
                    f"samples {', '.join(batch.sample_ids)}"
                )
            features = _widen(tokens, embeddings.shape[-1]).to(embeddings)
            mask = mask.unsqueeze(-1).to(embeddings.device)
            embeddings = embeddings.masked_scatter(mask, features)
        # Adds zero, but puts idle modules into the graph.
        return embeddings + anchor.to(embeddings)

    def embed_ids(self, ids: Tensor) -> Tensor:
        """Return token embeddings float[..., D] of int64[...]."""
        base = self.vlm.get_input_embeddings()(self.new_rows.base_ids(ids))
        return self.new_rows(base, ids=ids)

    def visual_tokens(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return image tokens, region tokens, and a zero that ties idle modules to the loss.

        A batch without images runs on a blank one when it trains; its features go into the zero
        only.

        Returns:
            float[T, W], float[N, D] and float[].
        """
        if batch.grids:
            image_tokens, maps = self._encode_images(batch.pixels, batch.grids)
            return image_tokens, *self.region_tokens(batch, maps)
        none = batch.pixels.new_zeros(0, self.family.hidden_size)
        if not torch.is_grad_enabled():
            return none, none, none.sum()
        pixels, grid = self.family.blank()
        blank = replace(
            batch,
            pixels=pixels.to(batch.pixels),
            grids=(grid,),
            auxiliary=(batch.pixels.new_zeros(3, _BLANK_SIDE, _BLANK_SIDE),),
            sizes=((_BLANK_SIDE, _BLANK_SIDE),),
            boxes=(batch.pixels.new_zeros(0, 4),),
        )
        tokens, regions, anchor = self.visual_tokens(blank)
        return none, regions, anchor + tokens.sum() * 0

    def region_tokens(self, batch: Batch, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return region tokens in running order, and the zero of images without boxes.

        An image without boxes is encoded with one box, the whole image, times zero: so every rank
        runs the region modules as often as it has images. Without gradients such images are left
        out.

        Args:
            batch: Samples with their images and boxes.
            maps: The primary tower's map of each image, float[C, H, W].

        Returns:
            float[N, D] and float[].
        """
        none = batch.pixels.new_zeros(0, self.family.hidden_size)
        used = [
            index
            for index, boxes in enumerate(batch.boxes)
            if len(boxes) or torch.is_grad_enabled()
        ]
        idle = [index for index in used if not len(batch.boxes[index])]
        if not used:
            return none, none.sum()
        encoded = self._encode_regions(
            [batch.auxiliary[index] for index in used],
            [batch.sizes[index] for index in used],
            [self._primary_map(batch, maps, index) for index in used],
            [_whole_image(batch, index) if index in idle else batch.boxes[index] for index in used],
        )
        by_image = dict(zip(used, encoded, strict=True))
        tokens = [by_image[index] for index in used if index not in idle]
        anchor = (
            torch.stack([by_image[index].sum() * 0 for index in idle]).sum() if idle else none.sum()
        )
        return torch.cat(tokens) if tokens else none, anchor

    def _encode_images(
        self, pixels: Tensor, grids: tuple[tuple[int, int], ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return image tokens float[T, W], and the primary tower's map of each image."""
        visual = self.family.vision_tower(self.vlm)
        # A frozen tower needs to keep no activations for the way back.
        with torch.no_grad() if _frozen(visual) else nullcontext():
            tokens, maps = self.family.encode_images(
                self.vlm, pixels, grids, all_levels=not self.model_config.region.pyramid
            )
        return self.image_projector(tokens), maps

    def _primary_map(self, batch: Batch, maps: list[Tensor], index: int) -> FeatureMap:
        """Return one image's map with its place over the original image.

        An odd side (27 cells of SigLIP's 384 px) gets its last line twice: SimpleFP halves the map.
        """
        values, (width, height) = maps[index], batch.sizes[index]
        if self.model_config.region.pyramid and (values.shape[1] % 2 or values.shape[2] % 2):
            values = F.pad(
                values, (0, values.shape[2] % 2, 0, values.shape[1] % 2), mode="replicate"
            )
        columns, rows = self.family.input_size(batch.grids[index])
        return FeatureMap(values, (columns / width, rows / height), self.family.patch_size)

    def _encode_regions(
        self,
        auxiliary: list[Tensor],
        sizes: list[tuple[int, int]],
        maps: list[FeatureMap],
        boxes: list[Tensor],
    ) -> list[Tensor]:
        """Return region tokens of each image, float[N_i, D]."""
        if self.auxiliary is None or self.model_config.region.features == "primary":
            auxiliary_maps: list[list[FeatureMap]] = [[] for _ in boxes]
        else:
            with torch.no_grad() if _frozen(self.auxiliary) else nullcontext():
                auxiliary_maps = self.auxiliary(auxiliary, sizes)
        return [
            self.region_encoder(levels, primary, image_boxes)
            for levels, primary, image_boxes in zip(auxiliary_maps, maps, boxes, strict=True)
        ]

    def decode(
        self,
        embeddings: Tensor,
        attention_mask: Tensor,
        positions: Tensor,
        cache: Any = None,
        *,
        places: Tensor | None = None,
    ) -> Tensor:
        """Return final hidden states float[B, L, D] of what ``embed`` or ``embed_ids`` gave.

        Args:
            embeddings: float[B, L, D or wider]; with a cache, of the new tokens only.
            attention_mask: int64[B, cached + L].
            positions: int64[A, B, L]; with a cache, of the new tokens only.
            cache: A transformers cache.
            places: int64[1, L] of a packed row (``Batch.places``), whose tokens attend within their
                own sample.
        """
        return self.family.language_model(self.vlm)(
            **self.family.decoder_inputs(embeddings, positions, places),
            # transformers looks for samples in a row, by their places, when there is no mask.
            attention_mask=attention_mask if places is None else None,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits float32[..., V] of hidden states float[..., D]."""
        rows = self.new_rows if self.new_output_rows is None else self.new_output_rows
        return rows(self.vlm.get_output_embeddings()(hidden), hidden=hidden).float()

    def without_new_tokens(self, logits: Tensor) -> Tensor:
        """Return ``logits`` float[..., V] with the region language's tokens at minus infinity.

        For answers about samples without regions: until the language model trains (stage 2), what
        is left is the base's own distribution, bit for bit.
        """
        return logits.index_fill(-1, self.new_rows.ids, float("-inf"))


def _by_sample(batch: Batch, supervised: Tensor, *values: Tensor) -> Tensor:
    """Return sums over each sample of values at supervised positions.

    Masked sums, because adding by index has no fixed order on a GPU.

    Args:
        batch: Where each token belongs.
        supervised: bool[B, L - 1], S of them true.
        values: float[S] each.

    Returns:
        float64[samples, len(values)].
    """
    if batch.places is None:
        samples = torch.arange(len(supervised), device=supervised.device)[:, None].expand_as(
            supervised
        )
    else:
        samples = (batch.places == 0).cumsum(dim=1)[:, 1:] - 1
    owners = torch.arange(len(batch.sample_ids), device=supervised.device)[:, None]
    own = samples[supervised] == owners
    return torch.stack(
        [torch.where(own, value.double(), 0.0).sum(dim=1) for value in values], dim=1
    )


def _frozen(module: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())


def _widen(tokens: Tensor, width: int) -> Tensor:
    """Return float[..., D] with zeros added up to ``width``."""
    missing = width - tokens.shape[-1]
    return F.pad(tokens, (0, missing)) if missing > 0 else tokens


def _whole_image(batch: Batch, index: int) -> Tensor:
    """Return the one box that is the whole image, float32[1, 4]."""
    width, height = batch.sizes[index]
    return batch.boxes[index].new_tensor([[0.0, 0.0, width, height]])
