"""New models on published weights: a VLM's folder and a DaViT's, each as its makers wrote it.

    vlm        a folder in the Hugging Face layout: config.json, safetensors, tokenizer; of one of
               `fo1_model.vlms.VLM_FAMILIES`, present or older names, as transformers reads them
    auxiliary  a folder or one file that holds a DaViT under the names of one of `LAYOUTS`: the
               vision tower of Florence-2 or of the released checkpoint, the release's
               ``davit-large.pth``, or timm's

Weights are read straight into their places, in the type that is asked for: nothing is drawn for the
two towers, and a model of billions of parameters takes no more memory than its own. No code of a
folder runs.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fo1_model.auxiliary_tower import AuxiliaryTower
from fo1_model.checkpoint import ASSETS, BASES, new_model
from fo1_model.config import AuxiliaryConfig, ModelConfig
from fo1_model.detectors.pretrained import load_part
from fo1_model.errors import SettingError
from fo1_model.model import FO1Model
from fo1_model.processing import Processor
from fo1_model.release.folders import read_tokenizer
from fo1_model.release.names import AUXILIARY, davit_name
from fo1_model.vlms import VLMFamily, build_family
from fo1_model.weights import (
    check_names,
    load_weights,
    open_weights,
    read_json,
    read_state,
    uninitialised,
    weights_of,
)

LAYOUTS: dict[str, tuple[str, Callable[[str], str]]] = {
    "Florence-2": ("vision_tower.", davit_name),
    "the released checkpoint": (AUXILIARY, davit_name),
    "the release's davit-large.pth": ("", davit_name),
    "timm": ("", str),
}
"""Whose names -> their prefix, and timm's name of a DaViT tensor to theirs."""
PICKLED = "pytorch_model.bin"
"""File of older folders; it is read as plain tensors or not at all."""
_WITHOUT_EFFECT = {
    *("architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path"),
    *("id2label", "label2id", "use_cache", "initializer_range", "max_position_embeddings"),
    # Layers with a sliding window are in layer_types.
    *("max_window_layers", "sliding_window"),
}
"""Fields of a VLM's config, at any depth, that change nothing that a trained model computes."""
_FLORENCE_FIELDS = {
    "dim_embed": "embed_dims",
    "depths": "depths",
    "num_heads": "num_heads",
    "num_groups": "num_heads",
    "window_size": "window_size",
}
"""Fields of Florence-2's ``vision_config`` -> `AuxiliaryConfig.kwargs`; shapes tell neither
heads nor window."""


def published_model(
    config: ModelConfig,
    seed: int,
    folders: Mapping[str, Path],
    *,
    dtype: torch.dtype = torch.float32,
    base: str = "",
) -> tuple[FO1Model, Processor]:
    """Return a model on the VLM and the DaViT in folders, in eval mode, and its processor.

    Region modules and new rows are fresh, the same for the same seed; so is an auxiliary tower that
    no folder is given for, unless a base is named.

    Args:
        config: What the folders must hold.
        seed: Seed of what is fresh.
        folders: ``vlm``, and ``auxiliary`` where its DaViT is in a folder too.
        dtype: Type of the weights; published ones are bfloat16 or float16 mostly.
        base: Name in ``checkpoint.BASES`` whose auxiliary tower is taken where no folder is given.

    Raises:
        SettingError: As `check_published`, and naming the first weights of the VLM that are
            missing, left over or of another shape.
    """
    check_published(config, folders)
    with torch.random.fork_rng(devices=[]):
        model, processor = new_model(
            config,
            seed,
            tokenizer=read_tokenizer(folders["vlm"]),
            vlm=_load_vlm(build_family(config.vlm), folders["vlm"], dtype),
            auxiliary=_auxiliary_tower(config, folders.get("auxiliary"), base, dtype),
        )
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model, processor


def check_published(config: ModelConfig, folders: Mapping[str, Path]) -> None:
    """Refuse folders that do not hold what a config says.

    Reads configs, the tokenizer and the headers of safetensors files; weights only where they are a
    torch file.

    Args:
        config: What the folders must hold.
        folders: As for `published_model`.

    Raises:
        SettingError: Naming folder, value and fix.
    """
    _check_vlm(config, folders["vlm"])
    if config.builds_auxiliary and "auxiliary" in folders:
        path = folders["auxiliary"]
        _check_florence_config(config.auxiliary, path)
        davit = find_davit(path)
        load_weights(
            davit.places(_empty_tower(config.auxiliary)), davit.shapes, (), what=davit.what
        )


def _check_vlm(config: ModelConfig, folder: Path) -> None:
    """Refuse a VLM's folder by family, sizes, tokenizer and files."""
    what, family = f"vlm={folder}", build_family(config.vlm)
    if not (folder / "config.json").is_file():
        raise SettingError(
            f"{what}: it has no config.json; give the folder of a VLM, as its makers publish it"
        )
    found, wanted = read_json(folder / "config.json").get("model_type"), family.config.model_type
    if found != wanted:
        raise SettingError(
            f"{what}: it is a {found!r}; the size asked for needs a {wanted!r}, or take another"
        )
    theirs = _settings(load_part(type(family.config), str(folder)).to_dict())
    for name, value in _settings(family.config.to_dict()).items():
        if theirs.get(name, value) != value:
            raise SettingError(
                f"{what}: config.json has {name}={theirs[name]!r}, the size asked for {value!r}; "
                "give the VLM of that size, or ask for another size"
            )
    if not any(folder.glob("model*.safetensors")):
        pickled = "; pickles are not read, save_pretrained it again where its maker is trusted"
        raise SettingError(
            f"{what}: it holds no model*.safetensors{pickled if any(folder.glob('*.bin')) else ''}"
        )
    open_weights(folder)
    Processor(config, read_tokenizer(folder))


def _settings(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return what decides the arithmetic in a transformers config, by dotted name."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if name in _WITHOUT_EFFECT or name.endswith(("_token_id", "_token_index")):
            continue
        if isinstance(value, Mapping):
            found |= _settings(value, f"{path}{name}.")
        else:
            found[path + name] = list(value) if isinstance(value, tuple) else value
    return found


def _load_vlm(family: VLMFamily, folder: Path, dtype: torch.dtype) -> nn.Module:
    vlm, report = load_part(
        family.model_class,
        str(folder),
        config=family.config,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are in the report
    )
    check_names(set(report["missing_keys"]), set(report["unexpected_keys"]), f"vlm={folder}")
    for name, given, own in sorted(report["mismatched_keys"]):
        raise SettingError(f"vlm={folder}: {name} is {list(given)}, the model has {list(own)}")
    return vlm.eval()


@dataclass(frozen=True, kw_only=True)
class DavitFile:
    """A DaViT in a file, under the names of one of the layouts."""

    what: str
    """Path and layout, for messages."""
    prefix: str
    """Text before the names of its tensors."""
    rename: Callable[[str], str]
    """Function from timm's name of a tensor to the rest of its name."""
    shapes: dict[str, tuple[int, ...]]
    """Name in the file -> shape, of every tensor of the tower."""
    read: Callable[[str], Tensor]
    """Function that reads one tensor in its stored type, by its name in the file."""

    def name(self, timm_name: str) -> str:
        """Return the name that a tensor of timm's has in the file."""
        return self.prefix + self.rename(timm_name)

    def shape(self, timm_name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, by timm's name; SettingError where the file lacks it."""
        if (name := self.name(timm_name)) not in self.shapes:
            raise SettingError(f"{self.what}: the DaViT lacks {name}")
        return self.shapes[name]

    def places(self, tower: AuxiliaryTower) -> dict[str, Tensor]:
        """Return our tensors by their names in the file."""
        return {self.name(name): own for name, own in weights_of(tower.model).items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Return every tensor of the tower, read when it is asked for."""
        return ((name, self.read(name)) for name in self.shapes)


def find_davit(path: Path) -> DavitFile:
    """Return the DaViT in a folder or a file, found by the name of its first convolution."""
    shapes, read = _open_tensors(path)
    for whose, (prefix, rename) in LAYOUTS.items():
        if prefix + rename("stem.conv.weight") in shapes:
            own = {
                name: shape
                for name, shape in shapes.items()
                # timm keeps a norm, and perhaps a classifier, behind the maps.
                if name.startswith(prefix) and not name.startswith("head.")
            }
            return DavitFile(
                what=f"auxiliary={path} ({whose})",
                prefix=prefix,
                rename=rename,
                shapes=own,
                read=read,
            )
    some = ", ".join(sorted(shapes)[:3])
    raise SettingError(
        f"auxiliary={path}: there is no DaViT in it under the names of {', '.join(LAYOUTS)}; it is "
        f"{_kind(path)} with {len(shapes)} tensors such as {some}; give Florence-2's folder"
    )


def _open_tensors(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    """Return shapes of the tensors at a path, and how one is read."""
    if not path.exists():
        raise SettingError(f"auxiliary={path}: there is no such folder or file")
    torch_file = path if path.is_file() else path / PICKLED
    has_safetensors = path.suffix == ".safetensors" or any(path.glob("model*.safetensors"))
    if has_safetensors or not torch_file.is_file():
        stored = open_weights(path)
        return stored.shapes, stored.read
    state = read_state(torch_file)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}, state.__getitem__


def _kind(path: Path) -> str:
    """Return what a folder says of itself."""
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    named = config.get("model_type") or config.get("architecture")
    return repr(named) if named else "a file" if path.is_file() else "a folder"


def _check_florence_config(config: AuxiliaryConfig, path: Path) -> None:
    """Refuse what shapes do not tell, where Florence-2's config.json lies beside its weights."""
    vision = florence_vision(path)
    for theirs, ours in _FLORENCE_FIELDS.items():
        wanted = config.kwargs[ours]
        if vision.get(theirs, wanted) != wanted:
            raise SettingError(
                f"auxiliary={path}: config.json has vision_config.{theirs}={vision[theirs]}, the "
                f"size asked for {wanted}; give the DaViT of that size, or ask for another size"
            )


def florence_vision(path: Path) -> dict[str, Any]:
    """Return ``vision_config`` of a Florence-2's config.json, empty where there is none."""
    if not (path / "config.json").is_file():
        return {}
    vision = read_json(path / "config.json").get("vision_config", {})
    return vision if "dim_embed" in vision else {}


def _auxiliary_tower(
    config: ModelConfig, path: Path | None, base: str, dtype: torch.dtype
) -> AuxiliaryTower | None:
    """Return the tower of a folder or a base; None where it is to be drawn, or there is none."""
    if not config.builds_auxiliary:
        return None
    if path is not None:
        return _load_tower(config.auxiliary, path, dtype)
    if not base:
        return None
    tower, prefix = _empty_tower(config.auxiliary), "auxiliary."
    stored = load_file(ASSETS / BASES[base])
    own = {name.removeprefix(prefix): t for name, t in stored.items() if name.startswith(prefix)}
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    what = f"the auxiliary tower of base {base!r}"
    load_weights(weights_of(tower), shapes, own.items(), what=what, dtype=dtype)
    return tower


def _empty_tower(config: AuxiliaryConfig) -> AuxiliaryTower:
    with uninitialised():
        return AuxiliaryTower(config)


def _load_tower(config: AuxiliaryConfig, path: Path, dtype: torch.dtype) -> AuxiliaryTower:
    davit, tower = find_davit(path), _empty_tower(config)
    load_weights(davit.places(tower), davit.shapes, davit.tensors(), what=davit.what, dtype=dtype)
    return tower
