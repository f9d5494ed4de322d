"""OPN as a detector: letterbox, forward, sigmoid, back to original pixels, selection."""

from collections.abc import Sequence

import torch

from fo1_model.detectors.configs import OPNDetectorConfig, UntrainedOPNConfig
from fo1_model.detectors.postprocess import select
from fo1_model.detectors.protocol import Detections, DetectorInput
from fo1_model.opn.config import OPN_SIZES, PROMPTS
from fo1_model.opn.network import load_opn, new_opn
from fo1_model.opn.targets import letterbox


class OPNDetector:
    """A trained OPN from its export folder, or an untrained one when the config says so."""

    def __init__(
        self, config: OPNDetectorConfig | UntrainedOPNConfig, checkpoint: str | None, device: str = "cpu"
    ) -> None:
        self.config = config
        if isinstance(config, UntrainedOPNConfig):
            model = new_opn(OPN_SIZES[config.size](), config.seed).eval()
        elif checkpoint is None:
            raise ValueError("OPNDetector(checkpoint=None): give the export folder of an OPN run")
        else:
            model = load_opn(checkpoint)
        self.model = model.to(device)
        self.device = device

    @torch.inference_mode()
    def detect(self, batch: Sequence[DetectorInput]) -> list[Detections]:
        """See `Detector.detect`."""
        if not batch:
            return []
        squares, placed = zip(*(letterbox(item.image, self.model.config) for item in batch), strict=True)
        pixels = torch.stack(squares).to(self.device)
        prompts = torch.full((len(batch),), PROMPTS.index(self.config.prompt), device=self.device)
        outputs = self.model(pixels, prompts)
        scores = outputs.logits[-1].float().sigmoid().cpu().numpy()
        return [
            select(
                where.to_original(outputs.boxes[-1, i]),
                scores[i],
                width=item.image.width,
                height=item.image.height,
                selection=self.config.selection,
            )
            for i, (item, where) in enumerate(zip(batch, placed, strict=True))
        ]
