"""OPN as a detector: letterbox, forward, sigmoid, back to original pixels, selection."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch

from fo1_model.detectors.batching import detect_by_shape, inference
from fo1_model.detectors.configs import OPNDetectorConfig, UntrainedOPNConfig
from fo1_model.detectors.protocol import Detections, DetectorInput, Prepare, Prepared
from fo1_model.errors import SettingError
from fo1_model.opn.config import OPN_SIZES, PROMPTS
from fo1_model.opn.network import OPN, load_config, load_opn, new_opn
from fo1_model.opn.targets import Letterbox, normalised_square, scaled_pixels


class OPNDetector:
    """A trained OPN from its export folder, or an untrained one when the config says so."""

    def __init__(
        self,
        config: OPNDetectorConfig | UntrainedOPNConfig,
        checkpoint: str | None,
        device: str = "cpu",
    ) -> None:
        if isinstance(config, UntrainedOPNConfig):
            model = new_opn(OPN_SIZES[config.size](), config.seed).eval()
        elif checkpoint is None:
            raise SettingError("OPNDetector(checkpoint=None): give the export folder of an OPN run")
        else:
            model = load_opn(checkpoint)
        self.config, self.device = config, device
        self.model: OPN = model.to(device)
        self.prepare = partial(_prepare, side=self.model.config.image_size)
        self._prompts = PROMPTS if config.prompt == "both" else (config.prompt,)

    def detect(self, batch: Sequence[Prepared]) -> list[Detections]:
        """Return the proposals of each image, as `Detector.detect`."""
        return detect_by_shape(batch, self._boxes, self.config.selection)

    def _boxes(
        self, pixels: torch.Tensor, items: list[Prepared]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield boxes in original px and scores of each image, those of all prompts together."""
        squares = normalised_square(pixels.to(self.device), self.model.config)
        per_prompt = [self._forward(squares, prompt) for prompt in self._prompts]
        for row, item in enumerate(items):
            placed = Letterbox(item.scale[0], self.model.config.image_size)
            boxes = [placed.to_original(boxes[row]) for boxes, _ in per_prompt]
            scores = [scores[row].cpu().numpy() for _, scores in per_prompt]
            yield np.concatenate(boxes), np.concatenate(scores)

    def _forward(self, squares: torch.Tensor, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return boxes [B, K, 4] cxcywh in [0, 1] of the square and scores [B, K], float32."""
        prompts = torch.full((len(squares),), PROMPTS.index(prompt), device=squares.device)
        with inference(self.device, self.config.precision):
            outputs = self.model(squares, prompts)
        return outputs.boxes[-1].float(), outputs.logits[-1].float().sigmoid()


def preparation(config: OPNDetectorConfig | UntrainedOPNConfig, checkpoint: str | None) -> Prepare:
    """Return the CPU half of the detector, as `fo1_model.detectors.preparation`."""
    network = (
        OPN_SIZES[config.size]()
        if isinstance(config, UntrainedOPNConfig)
        else load_config(str(checkpoint))
    )
    return partial(_prepare, side=network.image_size)


def _prepare(item: DetectorInput, *, side: int) -> Prepared:
    """Scale an image so that its longer side is `side` px."""
    pixels, placed = scaled_pixels(item.image, side)
    width, height = item.image.size
    return Prepared(
        image_id=item.image_id,
        width=width,
        height=height,
        pixels=pixels,
        scale=(placed.scale, placed.scale),
        known=item.known,
    )
