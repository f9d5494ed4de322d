"""UPN as a detector: scale, forward, sigmoid, back to original pixels, selection.

As in the released scripts (`inference_wrapper.py`), but for what `postprocess.select` does to the
boxes of every detector: they are clipped before NMS, keep their fractions and exact scores, and an
image without a box gives none.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image

from fo1_model.boxes import scale, to_corners
from fo1_model.detectors.batching import detect_by_shape, inference
from fo1_model.detectors.configs import UPNConfig
from fo1_model.detectors.protocol import Detections, DetectorInput, Prepare, Prepared
from fo1_model.detectors.upn.network import UPNNetworkConfig
from fo1_model.detectors.upn.weights import load_upn
from fo1_model.errors import SettingError


class UPNDetector:
    """UPN from its published state dict.

    Args:
        config: Which prompt, and which boxes are kept.
        checkpoint: The file.
        device: Where the network runs, as torch names it.
        network: Sizes; None takes those published.

    Raises:
        SettingError: As `load_upn`.
    """

    def __init__(
        self,
        config: UPNConfig,
        checkpoint: str | None,
        device: str = "cpu",
        network: UPNNetworkConfig | None = None,
    ) -> None:
        if checkpoint is None:
            raise SettingError(
                "UPNDetector(checkpoint=None): give the file of UPN's weights, upn_large.pth"
            )
        self.config, self.device = config, device
        self.model = load_upn(checkpoint, network).to(device)
        self.prepare = partial(_prepare, network=self.model.config)

    def detect(self, batch: Sequence[Prepared]) -> list[Detections]:
        """Return the proposals of each image, as `Detector.detect`."""
        return detect_by_shape(batch, self._boxes, self.config.selection)

    def _boxes(
        self, pixels: torch.Tensor, items: list[Prepared]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield boxes in original px and scores of each image."""
        with inference(self.device, self.config.precision):
            logits, boxes = self.model(self._normalised(pixels), self.config.prompt)
        for item, box, score in zip(items, boxes.cpu(), logits.sigmoid().cpu(), strict=True):
            yield scale(to_corners(box), item.width, item.height).numpy(), score.numpy()

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return uint8[B, 3, H, W] RGB as normalised float32, on the device."""
        network = self.model.config
        mean, std = (
            torch.tensor(values, device=self.device).view(3, 1, 1)
            for values in (network.pixel_mean, network.pixel_std)
        )
        return (pixels.to(self.device).float() / 255.0 - mean) / std


def preparation(config: UPNConfig, checkpoint: str | None) -> Prepare:  # noqa: ARG001
    """Return the CPU half of the detector, as `fo1_model.detectors.preparation`."""
    return partial(_prepare, network=UPNNetworkConfig())


def input_size(width: int, height: int, network: UPNNetworkConfig) -> tuple[int, int]:
    """Return width and height of the network's input (`transforms/transform.py`, resize).

    The shorter side becomes `short_side_px`, or what keeps the longer one at `long_side_px`. The
    longer side then follows from the rounded shorter one, cut to a whole number: it may be a little
    over its limit. A side has at least 1 px, where the released code fails.

    Args:
        width: Width of the image, px.
        height: Height of the image, px.
        network: Gives the two limits.

    Returns:
        Width and height, px.
    """
    short, long = min(width, height), max(width, height)
    side = network.short_side_px
    if long / short * side > network.long_side_px:
        side = round(network.long_side_px * short / long)
    side = max(side, 1)
    other = side * long // short
    return (side, other) if width < height else (other, side)


def _prepare(item: DetectorInput, *, network: UPNNetworkConfig) -> Prepared:
    """Scale an image as torchvision scales a PIL image: bilinear, with antialiasing."""
    width, height = item.image.size
    size = input_size(width, height, network)
    image = item.image.resize(size, Image.Resampling.BILINEAR)
    return Prepared(
        image_id=item.image_id,
        width=width,
        height=height,
        pixels=np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)),
        scale=(size[0] / width, size[1] / height),
        known=item.known,
    )
