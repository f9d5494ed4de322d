"""What transformers and tools built on it call on a model.

``FO1Model`` is called in two ways. Training gives it a ``Batch`` and gets sums for a loss over
many ranks. Everything else gives it tensors by name (``fo1_model.pretrained.inputs``), as its
processor makes them, and gets a loss and logits at every position.

Shape letters: B samples, L tokens, A position axes, I images, V vocabulary rows, D hidden size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from fo1_model.batch import IGNORE, Batch, TokenIds
from fo1_model.config import ModelConfig
from fo1_model.errors import SettingError
from fo1_model.pretrained.config import FO1Config
from fo1_model.pretrained.inputs import (
    IMAGE_INPUTS,
    batch_of_tensors,
    count_positions,
    repeated_images,
)
from fo1_model.vlms import VLMFamily

if TYPE_CHECKING:
    from fo1_model.processing import Processor

_DEFAULT_MAX_NEW_TOKENS = 512


class FO1PreTrainedModel(PreTrainedModel, GenerationMixin):
    """What transformers and tools built on it call; ``FO1Model`` fills it with the model.

    Parts draw their own weights, and folders are read by ``fo1_model.checkpoint``: names, strict
    keys and bytes are the same by either way.
    """

    config_class = FO1Config
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # Trainer asks before it passes num_items_in_batch
    _no_split_modules = ["AuxiliaryTower", "RegionEncoder", "NewTokenRows"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True

    config: FO1Config
    model_config: ModelConfig
    token_ids: TokenIds
    family: VLMFamily
    vlm: Any

    def init_weights(self) -> None:
        """Leave the weights as they are: every part drew its own, in an order that seeds need."""

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the first weights that are not kept elsewhere."""
        places = {value.device for value in self.parameters()} - {torch.device("meta")}
        if len(places) == 1:
            return places.pop()
        main = getattr(self, "hf_device_map", {}).values()
        used = [place for place in main if place not in ("cpu", "disk")]
        return torch.device(used[0] if used else "cpu")

    @classmethod
    def can_generate(cls) -> bool:
        """Return True; transformers would look for its mixin among the nearest bases only."""
        return True

    if TYPE_CHECKING:  # transformers wraps the first, whose types are lost; FO1Model has the rest

        def to(self, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
            """Move or cast the model."""

        def batch_loss(self, batch: Batch, *, return_logits: bool = False) -> Any:
            """Return what a ``Batch`` gives."""

        def embed(self, batch: Batch) -> Tensor:
            """Return the decoder's input."""

        def embed_ids(self, ids: Tensor) -> Tensor:
            """Return embeddings of text."""

        def decode(
            self, embeddings: Tensor, attention_mask: Tensor, positions: Tensor, cache: Any = None
        ) -> Tensor:
            """Return final hidden states."""

        def logits(self, hidden: Tensor) -> Tensor:
            """Return logits."""

    def forward(
        self,
        input_ids: Batch | Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        pixel_values: Sequence[Tensor] | None = None,
        image_grids: Tensor | None = None,
        auxiliary_values: Sequence[Tensor] | None = None,
        image_sizes: Tensor | None = None,
        boxes: Sequence[Tensor] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        return_logits: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Any:
        """Return the training loss of a ``Batch``, or loss and logits of tensors by name.

        Args:
            input_ids: The whole ``Batch``, with ``return_logits`` alone beside it (see
                ``FO1Model.batch_loss``); or ids int64[B, L].
            attention_mask: int64[B, cached + L]: 1 on tokens, 0 on padding at either side; all
                tokens without it.
            position_ids: int64[A, B, L], or int64[B, L] for a decoder with one axis; counted from
                the ids without it.
            past_key_values: A transformers cache, which the ids go on from.
            inputs_embeds: float[B, L, D] in place of ids; images are in them already.
            labels: int64[B, L], -100 where not supervised; shifted here.
            pixel_values: As the other four, what ``IMAGE_INPUTS`` says.
            image_grids: Likewise.
            auxiliary_values: Likewise.
            image_sizes: Likewise.
            boxes: Likewise.
            use_cache: Whether a cache is made where none is given.
            logits_to_keep: Number of last positions, or the positions, that get logits; 0 for all.
            num_items_in_batch: What the summed loss is divided by; the number of supervised
                positions without it.
            return_dict: False for a plain tuple.
            return_logits: For a ``Batch``, whether logits and targets are given back too.
            output_attentions: Not given back; refused.
            output_hidden_states: Not given back; refused.

        Returns:
            ``fo1_model.model.ModelOutput`` of a ``Batch``; else ``CausalLMOutputWithPast``.

        Raises:
            ValueError: For image inputs that do not belong together, slots and features that do
                not match in number, or positions that only the ids could tell.
        """
        if isinstance(input_ids, Batch):
            return self.batch_loss(input_ids, return_logits=return_logits)
        if output_attentions or output_hidden_states:
            raise ValueError(f"{type(self).__name__} gives back no attentions or hidden states")
        images = {
            "pixel_values": pixel_values,
            "image_grids": image_grids,
            "auxiliary_values": auxiliary_values,
            "image_sizes": image_sizes,
            "boxes": boxes,
        }
        cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        given = inputs_embeds if input_ids is None else input_ids
        if given is None:
            raise ValueError("give input_ids or inputs_embeds")
        if attention_mask is None:
            attention_mask = given.new_ones(
                (given.shape[0], cached + given.shape[1]), dtype=torch.int64
            )
        if position_ids is None:
            if cached:
                raise ValueError("a cache that is filled needs position_ids: generate passes them")
            position_ids = self.count_positions(input_ids, attention_mask, image_grids)
        positions = position_ids if position_ids.ndim == 3 else position_ids[None]
        if use_cache and past_key_values is None:
            past_key_values = self.family.new_cache()
        if inputs_embeds is None:
            none = all(value is None for value in images.values())
            inputs_embeds = (
                self.embed_ids(given)
                if cached and none
                else self.embed(
                    batch_of_tensors(self.family, given, attention_mask, positions, images)
                )
            )
        hidden = self.decode(inputs_embeds, attention_mask, positions, past_key_values)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.logits(hidden[:, kept])
        output = CausalLMOutputWithPast(
            loss=None if labels is None else causal_loss(logits, labels, num_items_in_batch),
            logits=logits,
            past_key_values=past_key_values,
        )
        return output.to_tuple() if return_dict is False else output

    def count_positions(
        self, ids: Tensor | None, attention_mask: Tensor, image_grids: Tensor | None
    ) -> Tensor:
        """Return positions int64[A, B, L]; see ``fo1_model.pretrained.inputs``."""
        return count_positions(self.family, self.token_ids.image, ids, attention_mask, image_grids)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of one step of ``generate``: images go in with their slots alone."""
        parent: Any = super()
        inputs = parent.prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        later = not is_first_iteration and kwargs.get("use_cache", True)
        # A conversation that goes on from a cache has its images in there.
        filled = past_key_values is not None and past_key_values.get_seq_length() > 0
        ids = inputs.get("input_ids")
        if later or (filled and ids is not None and not (ids == self.token_ids.image).any()):
            inputs = {name: value for name, value in inputs.items() if name not in IMAGE_INPUTS}
        return inputs

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]
    ) -> Tensor:
        """Return positions of the prompts, which ``generate`` counts on from."""
        ids = model_kwargs.get("input_ids", inputs_tensor)
        only_embeddings = ids.is_floating_point() or not ids.shape[1]
        mask = model_kwargs["attention_mask"]
        grids = model_kwargs.get("image_grids")
        positions = self.count_positions(None if only_embeddings else ids, mask, grids)
        return positions if len(positions) > 1 else positions[0]

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Return every row ``expand_size`` times, its images with it, for beams and samples."""
        images = {name: model_kwargs.pop(name) for name in IMAGE_INPUTS if name in model_kwargs}
        parent: Any = super()
        expanded, rest = parent._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if expand_size > 1 and images and input_ids is not None:
            order = repeated_images(
                self.family,
                self.token_ids.image,
                input_ids,
                images["image_grids"],
                expand_size,
            )
            images = {
                name: value[order] if isinstance(value, Tensor) else [value[i] for i in order]
                for name, value in images.items()
            }
        return expanded, rest | images

    def use_stops(self, processor: "Processor") -> None:
        """Let ``generate`` end answers and fill rows as our decoder does, greedily by default."""
        self.generation_config = GenerationConfig(
            eos_token_id=list(processor.stop_ids),
            pad_token_id=processor.pad_id,
            max_new_tokens=_DEFAULT_MAX_NEW_TOKENS,
            do_sample=False,
        )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, path: str | Path, **options: Any
    ) -> Any:
        """Return the model of a folder; see ``fo1_model.pretrained.loading.load_pretrained``."""
        from fo1_model.pretrained.loading import load_pretrained

        return load_pretrained(path, **options)

    def save_pretrained(  # type: ignore[override]
        self, path: str | Path, *, push_to_hub: bool = False, **options: Any
    ) -> None:
        """Write config and weights; see ``fo1_model.pretrained.loading.save_pretrained``.

        Args:
            path: The folder.
            push_to_hub: Whether ``push_to_hub`` follows, to the folder's name or ``repo_id``.
            options: Those of `save_pretrained`, and of ``push_to_hub`` where that follows.
        """
        from fo1_model.pretrained.loading import save_pretrained

        # Adapters that transformers put in are stored alone, as it stores them.
        if getattr(self, "_hf_peft_config_loaded", False):
            super().save_pretrained(path, push_to_hub=push_to_hub, **options)
            return
        names = ("repo_id", "commit_message", "private", "token", "create_pr", "revision")
        upload = {name: options.pop(name) for name in names if name in options}
        save_pretrained(self, path, **options)  # type: ignore[arg-type]
        if push_to_hub:
            self.push_to_hub(upload.pop("repo_id", Path(path).name), **upload)

    def get_input_embeddings(self) -> nn.Module:
        """Return the base's embedding; the region language's rows are apart (``embed_ids``)."""
        return self.vlm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Set the base's embedding."""
        self.vlm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the base's head; the region language's rows are apart (``logits``)."""
        return self.vlm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Set the base's head."""
        self.vlm.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        """Return the language model."""
        return self.family.language_model(self.vlm)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,  # noqa: ARG002
    ) -> Any:
        """Return the base's embedding when its size is the one asked for.

        Raises:
            SettingError: For another size: new tokens have rows of their own.
        """
        rows = self.family.vocabulary_rows
        if pad_to_multiple_of or new_num_tokens not in (None, rows):
            raise SettingError(
                f"resize_token_embeddings({new_num_tokens}): the base's {rows} rows stay as they "
                "are, and the region language's are parameters of their own "
                "(ModelConfig.num_region_tokens); for other tokens start from another base"
            )
        return self.get_input_embeddings()


def causal_loss(logits: Tensor, labels: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """Return the mean cross entropy of the next tokens, float32[].

    Args:
        logits: float32[B, L, V].
        labels: int64[B, L], -100 where not supervised.
        num_items: What the sum is divided by; the number of supervised positions without it.
    """
    targets = F.pad(labels, (0, 1), value=IGNORE)[:, 1:].to(logits.device)
    total = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return total / ((targets != IGNORE).sum() if num_items is None else num_items)
