"""Our model folders for transformers' auto classes; importing this module registers them.

    import fo1_model.hub
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)

``FO1Model.from_pretrained`` and ``Processor.from_pretrained`` do the same without this module. It
is not imported by ``fo1_model`` itself, which has to stay light.
"""

from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from fo1_model.checkpoint import load_processor
from fo1_model.config import MODEL_TYPE
from fo1_model.model import FO1Model
from fo1_model.pretrained.config import FO1Config
from fo1_model.pretrained.loading import folder_of, refuse_unknown
from fo1_model.processing import Processor


class FO1Processor:
    """What ``AutoProcessor`` calls for one of our folders; it gives a ``Processor``."""

    @classmethod
    def from_pretrained(cls, path: str | Path, *, subfolder: str = "", **options: Any) -> Processor:
        """Read the processor of a folder or a repository.

        Args:
            path: As for ``fo1_model.pretrained.loading.load_pretrained``.
            subfolder: Folder below ``path`` that holds the processor.
            options: What else the auto class passes on; only what is about repositories is let
                through.

        Raises:
            SettingError: For an unknown option.
        """
        refuse_unknown(options, type_name="AutoProcessor", known="subfolder")
        return load_processor(folder_of(path, options) / subfolder)


def register() -> None:
    """Make our folders known to transformers' auto classes; a second call changes nothing."""
    AutoConfig.register(MODEL_TYPE, FO1Config, exist_ok=True)
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
        auto.register(FO1Config, FO1Model, exist_ok=True)
    AutoProcessor.register(FO1Config, FO1Processor, exist_ok=True)


register()
