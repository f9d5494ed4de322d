"""Hugging Face detectors that are asked in words as proposers.

Grounding DINO, OmDet-Turbo, OWL-ViT and OWLv2. Everything asked for goes into one prompt; a box's
score is that of the word it fits best, and each query gives one box. The processor's own
post-processing does the same, but OmDet-Turbo's also cuts to the best (query, name) pairs and
suppresses overlaps, which is left to `select` here.

The words are tokenised once, when the detector is made. Grounding DINO and OWL encode them anew
with each batch, as their forward has it; OmDet-Turbo keeps the encoded words itself, and may, since
nothing is trained here. With bf16 most models give coordinates in bf16, good to about 0.2 % of the
image's side.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

from fo1_model.detectors.batching import detect_by_shape, inference
from fo1_model.detectors.configs import TextPromptedConfig
from fo1_model.detectors.pretrained import load_model, load_part, prepare_image, raw_boxes
from fo1_model.detectors.protocol import Detections, Prepare, Prepared
from fo1_model.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class Family:
    """What differs between the models.

    All score by sigmoid and give boxes cxcywh in [0, 1] of the input.
    """

    text: Callable[[list[str]], Any]
    """Turns the names into the text of one image, as the processor wants it."""
    tokens: str = "input_ids"
    """Name of the model's input that holds the ids of the names."""
    logits: str = "logits"
    """Name of the output float[B, Q, C], for C names or tokens.

    What is no name there is minus infinity or near it.
    """
    boxes: str = "pred_boxes"
    """Name of the output float[B, Q, 4]."""
    to_square: bool = False
    """Whether the processor pads the image to a square, which the boxes are relative to."""


def phrases(names: list[str]) -> str:
    """Return names as Grounding DINO was trained to read them: "a cat. a dog."."""
    return "".join(f"{name.lower()}. " for name in names).strip()


def one_list(names: list[str]) -> list[list[str]]:
    """Return names as the list of one image."""
    return [names]


FAMILIES: dict[str, Family] = {
    "grounding-dino": Family(text=phrases),
    "mm-grounding-dino": Family(text=phrases),
    "omdet-turbo": Family(
        text=one_list,
        tokens="classes_input_ids",
        logits="decoder_class_logits",
        boxes="decoder_coord_logits",
    ),
    "owlvit": Family(text=one_list),
    "owlv2": Family(text=one_list, to_square=True),
}
"""Families by `model_type` of a folder's config.json; LLMDet is an mm-grounding-dino."""


class TextPromptedDetector:
    """A detector of a folder, asked for the config's names."""

    def __init__(
        self, config: TextPromptedConfig, checkpoint: str | None, device: str = "cpu"
    ) -> None:
        folder = str(checkpoint)
        self.config, self.device = config, device
        self._family = family_of(folder)
        self.model = load_model(AutoModelForZeroShotObjectDetection, folder).to(device)
        processor = load_part(AutoProcessor, folder)
        self.prepare = _preparation(self._family, processor)
        self._takes_mask = "pixel_mask" in inspect.signature(self.model.forward).parameters
        # OmDet-Turbo's processor takes no text without an image.
        blank = Image.new("RGB", (64, 64))
        encoded = processor(images=blank, text=self._family.text(config.names), return_tensors="pt")
        self._text = {k: v.to(device) for k, v in encoded.items() if not k.startswith("pixel_")}
        longest = self._text[self._family.tokens].shape[-1]
        limit = getattr(self.model.config, "max_text_len", processor.tokenizer.model_max_length)
        if longest > limit:
            raise SettingError(
                f"TextPromptedConfig.prompt={config.prompt!r}: {longest} tokens, but the model of "
                f"{folder} takes {limit}; ask for less"
            )

    def detect(self, batch: Sequence[Prepared]) -> list[Detections]:
        """Return the proposals of each image, as `Detector.detect`."""
        return detect_by_shape(batch, partial(raw_boxes, self._forward), self.config.selection)

    def _forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model as a `Network` of `pretrained`."""
        inputs = {"pixel_values": pixels.to(self.device)}
        if self._takes_mask:
            inputs["pixel_mask"] = mask.to(self.device)
        for key, value in self._text.items():
            inputs[key] = value.repeat(len(pixels), *[1] * (value.ndim - 1))
        with inference(self.device, self.config.precision):
            outputs = self.model(**inputs)
        logits: Tensor = outputs[self._family.logits]
        return outputs[self._family.boxes], logits.float().amax(-1).sigmoid()


def preparation(config: TextPromptedConfig, checkpoint: str | None) -> Prepare:  # noqa: ARG001
    """Return the CPU half of the detector, as `fo1_model.detectors.preparation`."""
    folder = str(checkpoint)
    return _preparation(family_of(folder), load_part(AutoProcessor, folder))


def family_of(folder: str) -> Family:
    """Return the family of a folder's model; one that is none of `FAMILIES` is a SettingError."""
    model_type = load_part(AutoConfig, folder).model_type
    if model_type not in FAMILIES:
        raise SettingError(
            f"checkpoint={folder!r}: holds a {model_type}; use one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def _preparation(family: Family, processor: Any) -> Prepare:
    """Return what a family's images go through first."""
    return partial(prepare_image, processor=processor.image_processor, to_square=family.to_square)
