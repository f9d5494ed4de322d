"""The config of a new model, read from the folders of its two towers: any size of any family.

Only what the folders hold is taken over and nothing of where they lie, so that two copies of one
folder give one config.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fo1_model.config import AuxiliaryConfig, ModelConfig, NewRowsConfig, VLMConfig
from fo1_model.errors import SettingError
from fo1_model.sizes import davit
from fo1_model.vlms import VLM_FAMILIES, build_family
from fo1_model.vlms.published import DavitFile, find_davit, florence_vision
from fo1_model.weights import read_json

_ABOUT_FILES = {
    *("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"),
    *("_name_or_path", "name_or_path", "use_cache", "_attn_implementation"),
}
"""Keys of a ``config.json``, at any depth, that say nothing of what the model computes."""
_HEAD_DIM = 32
"""Channels a head of every published DaViT, the same in each stage."""
_WINDOW = 12
"""Side of the attention windows of every published DaViT, cells."""


def folder_config(vlm: Path, auxiliary: Path | None, usual: ModelConfig) -> ModelConfig:
    """Return the config of a model whose towers are the ones in two folders.

    Args:
        vlm: Folder of a VLM of a known family, as its makers publish it.
        auxiliary: Folder or file of a DaViT; None takes the auxiliary tower of `usual`.
        usual: Everything that the folders do not say: region encoder, connector, image sizes.

    Raises:
        SettingError: A folder holds no VLM of a known family, or no DaViT.
    """
    tower = usual.auxiliary if auxiliary is None else _auxiliary(auxiliary, usual.auxiliary)
    found = _vlm_config(vlm)
    family = build_family(found)  # a size that the family cannot be is refused here
    # New rows start as the mean of the base's: which of its words they are like, nobody said.
    fresh: dict[str, Any] = {"new_rows": NewRowsConfig(), "image_gap": family.image_gap}
    return replace(usual, vlm=found, auxiliary=tower, **fresh)


def _vlm_config(folder: Path) -> VLMConfig:
    """Return family and sizes of a VLM's folder."""
    what = f"vlm={folder}"
    if not (folder / "config.json").is_file():
        raise SettingError(
            f"{what}: it has no config.json; give the folder of a VLM, as its makers publish it"
        )
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    families = {_model_type(made): name for name, made in VLM_FAMILIES.items()}
    if kind not in families:
        raise SettingError(
            f"{what}: its model_type is {kind!r}; families that can be trained are "
            f"{', '.join(sorted(families))}"
        )
    return VLMConfig(family=families[kind], config=_without_files(config))


def _model_type(family: Any) -> str:
    """Return the ``model_type`` that the folders of a family have."""
    return str(family.model_class.config_class.model_type)


def _without_files(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_files(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in _ABOUT_FILES
    }


def _auxiliary(path: Path, usual: AuxiliaryConfig) -> AuxiliaryConfig:
    """Return the config of the DaViT at a path: widths and depths are those of its tensors."""
    found = find_davit(path)
    dims = [found.shape(f"{_ENTRY[stage]}.conv.weight")[0] for stage in range(4)]
    depths = [_count_blocks(found, stage) for stage in range(4)]
    first = max(dims[0] // _HEAD_DIM, 1)
    said = florence_vision(path)
    kwargs = davit(
        depths=depths,
        dims=dims,
        heads=said.get("num_heads", [first * dim // dims[0] for dim in dims]),
        window=said.get("window_size", _WINDOW),
    )
    return replace(usual, name="davit_huge_fl", kwargs=kwargs)


def _count_blocks(found: DavitFile, stage: int) -> int:
    name = re.escape(found.name(f"stages.{stage}.blocks.0.spatial_block.norm1.weight"))
    pattern = name.replace(rf"{stage}\.blocks\.0", rf"{stage}\.blocks\.(\d+)")
    pattern = pattern.replace(rf"blocks\.{stage}\.0", rf"blocks\.{stage}\.(\d+)")
    return len({match[1] for key in found.shapes if (match := re.fullmatch(pattern, key))})


_ENTRY = ("stem", *(f"stages.{stage}.downsample" for stage in (1, 2, 3)))
"""Start of timm's names of the convolution that an image enters each stage through."""
