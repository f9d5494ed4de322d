"""VLM families: what differs between base models, behind one type.

    family           VLMFamily, the type, and what its entries share
    square_tower     what families share whose vision tower sees squares
    qwen             Qwen2-VL, Qwen2.5-VL (the release's) and Qwen3-VL
    qwen3_5          Qwen3.5, dense and with experts
    glm4v            GLM-4.1V
    internvl         InternVL
    llava            LLaVA 1.5 and LLaVA-NeXT
    llava_onevision  LLaVA-OneVision
    smolvlm          SmolVLM and Idefics3
    token_writer     ids and labels of a conversation, written together
    tiny_tokenizer   the tokenizer of the tiny base that comes with the package
    published        new models on a base's and a DaViT's published weights
    folder_config    the config of such a model, read from the folders

A family is added by a file here and a line in `VLM_FAMILIES`.
"""

from collections.abc import Callable

from fo1_model.config import VLMConfig
from fo1_model.errors import SettingError
from fo1_model.vlms.family import Grid, VLMFamily
from fo1_model.vlms.glm4v import Glm4v
from fo1_model.vlms.internvl import InternVL
from fo1_model.vlms.llava import Llava, LlavaNext
from fo1_model.vlms.llava_onevision import LlavaOnevision
from fo1_model.vlms.qwen import Qwen2VL, Qwen3VL, Qwen3VLMoe, Qwen25VL
from fo1_model.vlms.qwen3_5 import Qwen35, Qwen35Moe
from fo1_model.vlms.smolvlm import Idefics3, SmolVLM

__all__ = ["VLM_FAMILIES", "Grid", "VLMFamily", "build_family"]

VLM_FAMILIES: dict[str, Callable[[VLMConfig], VLMFamily]] = {
    "qwen2_vl": Qwen2VL,
    "qwen2_5_vl": Qwen25VL,
    "qwen3_vl": Qwen3VL,
    "qwen3_vl_moe": Qwen3VLMoe,
    "qwen3_5": Qwen35,
    "qwen3_5_moe": Qwen35Moe,
    "glm4v": Glm4v,
    "internvl": InternVL,
    "llava": Llava,
    "llava_next": LlavaNext,
    "llava_onevision": LlavaOnevision,
    "smolvlm": SmolVLM,
    "idefics3": Idefics3,
}
"""VLM families by the name in ``VLMConfig.family``."""


def build_family(config: VLMConfig) -> VLMFamily:
    """Return the family of a config.

    Raises:
        SettingError: Naming the known ones for an unknown name.
    """
    if config.family not in VLM_FAMILIES:
        raise SettingError(
            f"VLMConfig.family={config.family!r} is not known; "
            f"choose one of {', '.join(VLM_FAMILIES)}"
        )
    return VLM_FAMILIES[config.family](config)
