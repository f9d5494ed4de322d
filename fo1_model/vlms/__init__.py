"""VLM families: the type in ``family``, an entry a family, and the table of all."""

from collections.abc import Callable

from fo1_model.config import VLMConfig
from fo1_model.vlms.family import Grid, VLMFamily
from fo1_model.vlms.internvl import InternVL
from fo1_model.vlms.llava_onevision import LlavaOnevision
from fo1_model.vlms.qwen import Qwen2VL, Qwen3VL, Qwen25VL
from fo1_model.vlms.smolvlm import SmolVLM

__all__ = ["VLM_FAMILIES", "Grid", "VLMFamily", "build_family"]

VLM_FAMILIES: dict[str, Callable[[VLMConfig], VLMFamily]] = {
    "qwen2_vl": Qwen2VL,
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen3VL,
    "internvl": InternVL,
    "llava_onevision": LlavaOnevision,
    "smolvlm": SmolVLM,
}
"""VLM families by the name in ``VLMConfig.family``."""


def build_family(config: VLMConfig) -> VLMFamily:
    """The family of a config. Raises ValueError naming the known ones for an unknown name."""
    if config.family not in VLM_FAMILIES:
        raise ValueError(
            f"VLMConfig.family={config.family!r} is not known; choose one of {', '.join(VLM_FAMILIES)}"
        )
    return VLM_FAMILIES[config.family](config)
