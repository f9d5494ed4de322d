"""How a released checkpoint is decoded, as its ``generation_config.json`` says."""

import json
from typing import Any

from fo1_model.errors import SettingError
from fo1_model.generation import GenerationConfig
from fo1_model.processing import Processor

FILE = "generation_config.json"


def generation_config(processor: Processor, **settings: Any) -> GenerationConfig:
    """Return how the release decodes the checkpoint that a processor came with.

    It is greedy whatever the file says of sampling, and its stop tokens are the processor's; so all
    that counts of the file is the repetition penalty (1.05 in the base family).

    Args:
        processor: From `load_release`, or from a folder that was imported.
        **settings: Fields of `GenerationConfig` that are set otherwise.

    Raises:
        SettingError: For a file that is no JSON object, or a penalty that is no number above 0.
    """
    content = processor.release_files.get(FILE, b"{}")
    try:
        stored = json.loads(content)
        penalty = float(stored.get("repetition_penalty") or 1.0)
    except (ValueError, TypeError, AttributeError) as error:
        raise SettingError(f"{FILE} of the released folder cannot be read: {error}") from error
    return GenerationConfig(**{"repetition_penalty": penalty, **settings})
