"""Models on disk, in the Hugging Face layout, and new ones.

A model is a folder:

    config.json             what the model is, and the ids of the tokens it knows
    model.safetensors       its weights; numbered files with an index when they are large
    processor_config.json   names the processor, for ``AutoProcessor``
    tokenizer.json          the tokenizer, the region language's tokens included
    tokenizer_config.json   its settings
    release/                files of the released folder that it was imported from, for the way back

Weights are read from safetensors only. A tied head is not stored twice. transformers' auto classes
read the folder too, once ``fo1_model.hub`` is imported.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from fo1_model.auxiliary_tower import AuxiliaryTower
from fo1_model.batch import TokenIds
from fo1_model.config import FORMAT, MODEL_TYPE, ModelConfig, is_released
from fo1_model.errors import SettingError
from fo1_model.model import FO1Model
from fo1_model.pretrained.config import FO1Config
from fo1_model.processing import Processor
from fo1_model.sizes import SIZES
from fo1_model.vlms.tiny_tokenizer import tiny_tokenizer
from fo1_model.weights import (
    MAX_FILE_BYTES,
    StoredWeights,
    check_weights,
    load_weights,
    open_weights,
    read_json,
    uninitialised,
    weights_of,
    write_json,
    write_weights,
)

PROCESSOR_CLASS = "FO1Processor"
"""Name of the processor for ``AutoProcessor``."""
ASSETS = Path(__file__).parent / "assets"
BASES = {"tiny": "tiny_base.safetensors"}
"""Sizes whose pretrained VLM and auxiliary tower come with the package, and their file."""
_PRETRAINED = ("vlm.", "auxiliary.")
_WHAT_IS_READ = (
    f"read are folders that save_model wrote (model_type {MODEL_TYPE!r}), a run's export/ among "
    "them, and the released checkpoint's"
)
_OTHER_FOLDERS = {
    "adapter_config.json": "an adapter of peft",
    "export": "a run",
    "manifest.json": "a step's output",
    "preprocessor_config.json": "an image processor",
    "tokenizer.json": "a processor saved without its model",
}
"""A file that tells what a folder is which is no model's; the first that is there counts."""


def new_model(
    config: ModelConfig,
    seed: int,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    base: dict[str, Tensor] | None = None,
    vlm: nn.Module | None = None,
    auxiliary: AuxiliaryTower | None = None,
) -> tuple[FO1Model, Processor]:
    """Return a model with fresh weights, the same for the same seed, and its processor.

    New vocabulary rows start as ``ModelConfig.new_rows`` says.

    Args:
        config: What to build.
        seed: Seed of all fresh weights.
        tokenizer: The base VLM's; the tiny one by default.
        base: Weights ``vlm.*`` and ``auxiliary.*`` to start from; both parts must be complete.
        vlm: A VLM that is made already; nothing is drawn for it.
        auxiliary: An auxiliary tower that is made already; nothing is drawn for it.

    Raises:
        SettingError: When base lacks a weight, has one too many, or a shape differs.
    """
    processor = Processor(config, tokenizer if tokenizer is not None else tiny_tokenizer())
    # The caller's generator stays where it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FO1Model(FO1Config.of(config, processor.token_ids), vlm=vlm, auxiliary=auxiliary)
        if base is not None:
            _load_base(model, base)
        # A generator of their own: the rows do not depend on what was drawn before them.
        generator = torch.Generator().manual_seed(seed)
        start: dict[str, Any] = {
            "spread": config.new_rows.spread,
            "like": {
                processor.id_of(new): processor.id_of(old)
                for new, old in config.new_rows.like.items()
            },
        }
        model.new_rows.initialise(model.vlm.get_input_embeddings().weight, generator, **start)
        if model.new_output_rows is not None:
            model.new_output_rows.initialise(
                model.vlm.get_output_embeddings().weight, generator, **start
            )
    model.use_stops(processor)
    return model.eval(), processor


def load_base(
    name: str, seed: int = 0, *, config: ModelConfig | None = None
) -> tuple[FO1Model, Processor]:
    """Return a model of a named size on its pretrained VLM and auxiliary tower, and its processor.

    Region modules and new rows are fresh.

    Args:
        name: Key of `BASES`.
        seed: Seed of what is fresh.
        config: The size's with other region modules, for ablations.

    Raises:
        SettingError: For a size without a pretrained base, or a config that its weights do not fit.
    """
    if name not in BASES:
        raise SettingError(f"no pretrained base for {name!r}; choose one of {', '.join(BASES)}")
    config = config or SIZES[name]()
    base = load_file(ASSETS / BASES[name])
    if not config.builds_auxiliary:
        base = {key: value for key, value in base.items() if not key.startswith("auxiliary.")}
    return new_model(config, seed, base=base)


def save_model(
    model: FO1Model,
    processor: Processor,
    folder: str | Path,
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write the model folder; the same model gives the same bytes.

    Args:
        model: The model, on any device.
        processor: Its processor.
        folder: Made when it is not there.
        max_file_bytes: Size in bytes above which weights go into several files.
    """
    write_model(model, folder, max_file_bytes=max_file_bytes)
    write_processor(processor, folder)


def write_model(
    model: FO1Model,
    folder: str | Path,
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model's part of its folder, ``config.json`` and the weights; as `save_model`.

    Args:
        model: The model.
        folder: Made when it is not there.
        max_file_bytes: Size in bytes above which weights go into several files.
        state_dict: Weights in the place of the model's own, which other processes hold.

    Raises:
        SettingError: When the state dict lacks a weight or has one of another shape.
    """
    folder = Path(folder)
    tied = model.all_tied_weights_keys
    own = {name: value for name, value in weights_of(model).items() if name not in tied}
    if state_dict is not None:
        repeated = set(model.state_dict()) - set(own)
        given = {name: value for name, value in state_dict.items() if name not in repeated}
        shapes = {name: tuple(value.shape) for name, value in given.items()}
        check_weights(own, shapes, "the state dict")
        own = given
    write_weights(
        folder,
        {name: partial(_here, model, name, value) for name, value in own.items()},
        {name: value.nbytes for name, value in own.items()},
        max_file_bytes=max_file_bytes,
    )
    _write_config(folder, model.model_config, model.token_ids)


def write_processor(processor: Processor, folder: str | Path) -> None:
    """Write a processor's part of its folder: ``config.json``, and the tokenizer."""
    from fo1_model.release.kept_files import SUBFOLDER, write_kept

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(folder, processor.config, processor.token_ids)
    write_json(folder / "processor_config.json", {"processor_class": PROCESSOR_CLASS})
    write_tokenizer(processor.tokenizer, folder)
    write_kept(processor.release_files, folder / SUBFOLDER)


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer's two files, without a trace of where it was read from."""
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": tokenizer.model_max_length,
        **{
            name: str(token)
            for name, token in tokenizer.special_tokens_map.items()
            if isinstance(token, str)
        },
    }
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    write_json(folder / "tokenizer_config.json", settings)


def load_model(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
) -> tuple[FO1Model, Processor]:
    """Return the model of a folder, in eval mode, and its processor.

    Args:
        folder: Folder that `save_model` wrote, or a released checkpoint's.
        dtype: Type of the weights; None keeps each as it is stored.
        device: Where the model is put.

    Raises:
        SettingError: When the folder is of another kind or its format is unknown, weights are
            missing, left over or of another shape, or the tokenizer gives other ids than the model
            was made for.
    """
    if is_release(folder):
        return _released(folder, dtype=dtype, device=device)
    model, processor = _read_weights(Path(folder), dtype, device), load_processor(folder)
    model.use_stops(processor)
    return model, processor


def read_model(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> FO1Model:
    """Return the model alone, in eval mode; arguments and errors as for `load_model`."""
    folder = Path(folder)
    if is_release(folder):
        return _released(folder, dtype=dtype, device=device)[0]
    model = _read_weights(folder, dtype, device)
    load_stops(model, folder)
    return model


def _read_weights(folder: Path, dtype: torch.dtype | None, device: str | torch.device) -> FO1Model:
    model, stored = open_model(folder)
    own, what = weights_of(model), str(folder)
    load_weights(own, stored.shapes, stored.tensors(), what=what, dtype=dtype, device=device)
    # Weights are in their place; this moves the buffers, whose type must stay.
    return model.to(device=device).eval()


def open_model(folder: Path) -> tuple[FO1Model, StoredWeights]:
    """Return the model of a folder with nothing in its weights yet, and what will go there."""
    config, token_ids = _read_config(folder)
    stored = open_weights(folder)
    # Drawing billions of weights to overwrite them would take minutes.
    with uninitialised():
        return FO1Model(FO1Config.of(config, token_ids)), stored


def load_stops(model: FO1Model, folder: Path) -> None:
    """Let the model's ``generate`` stop as its processor says, if the folder has one."""
    if (folder / "tokenizer.json").is_file():
        model.use_stops(load_processor(folder))


def load_processor(folder: str | Path) -> Processor:
    """Return the processor alone; errors as for `load_model`."""
    from fo1_model.release.kept_files import SUBFOLDER, read_kept

    folder = Path(folder)
    if is_release(folder):
        from fo1_model.release import load_release_processor

        return load_release_processor(folder)
    config, token_ids = _read_config(folder)
    if not (folder / "tokenizer.json").is_file():
        raise SettingError(f"{folder} has no tokenizer.json; it was saved without its processor")
    processor = Processor(config, read_fast_tokenizer(folder))
    # With other ids the rows of the region language would be other words' rows.
    if processor.token_ids != token_ids:
        raise SettingError(
            f"{folder}/tokenizer.json gives other ids to the model's tokens than config.json"
        )
    processor.release_files = read_kept(folder / SUBFOLDER)
    return processor


def read_fast_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of ``tokenizer.json``; SettingError for a file that holds none."""
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder))
    except Exception as error:  # the tokenizers library raises Exception itself
        raise SettingError(f"{folder}/tokenizer.json is no tokenizer: {error}") from error


def _write_config(folder: Path, config: ModelConfig, token_ids: TokenIds) -> None:
    values = {
        "architectures": ["FO1Model"],
        "model_type": MODEL_TYPE,
        "format": FORMAT,
        "model": config.to_dict(),
        "token_ids": asdict(token_ids),
    }
    write_json(folder / "config.json", values)


def is_release(folder: str | Path) -> bool:
    """Return whether a folder has the released checkpoint's layout, by its ``config.json``."""
    path = Path(folder) / "config.json"
    config = read_json(path) if path.is_file() else None
    return isinstance(config, Mapping) and is_released(config)


def _released(folder: str | Path, **options: Any) -> tuple[FO1Model, Processor]:
    from fo1_model.release import load_release  # it stands on this module

    return load_release(folder, **options)


def _read_config(folder: Path) -> tuple[ModelConfig, TokenIds]:
    if not (folder / "config.json").is_file():
        raise SettingError(
            f"{folder} is not a model folder: {_what_it_is(folder)}; {_WHAT_IS_READ}"
        )
    config = read_json(folder / "config.json")
    if not isinstance(config, Mapping):
        raise SettingError(f"{folder}/config.json holds no object")
    if config.get("model_type") != MODEL_TYPE:
        raise SettingError(
            f"{folder} is not a model folder: its config.json has model_type "
            f"{config.get('model_type')!r}; {_WHAT_IS_READ}"
        )
    if config.get("format") != FORMAT:
        raise SettingError(
            f"{folder}/config.json has format {config.get('format')!r}; this code reads {FORMAT}"
        )
    try:
        ids = config["token_ids"]
        token_ids = TokenIds(image=ids["image"], region=ids["region"], new=tuple(ids["new"]))
        return ModelConfig.from_dict(config["model"]), token_ids
    except (KeyError, TypeError) as error:
        raise SettingError(
            f"{folder}/config.json was not written by save_model: {error!r}; save the model again"
        ) from error


def _what_it_is(folder: Path) -> str:
    """Return what a path without a ``config.json`` is, in words, as far as its files tell."""
    if not folder.exists():
        return "there is nothing"
    if folder.is_file():
        return "it is a file"
    for file, what in _OTHER_FOLDERS.items():
        if (folder / file).exists():
            return f"it has {file}, as {what} has, and no config.json"
    return "it has no config.json"


def _here(model: FO1Model, name: str, value: Tensor) -> Tensor:
    """Return a weight, fetched from where accelerate keeps it when it lies elsewhere."""
    if value.device.type != "meta":
        return value
    from accelerate.utils import align_module_device

    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    with align_module_device(module, execution_device="cpu"):
        return getattr(module, leaf).detach().clone()


def _load_base(model: FO1Model, base: Mapping[str, Tensor]) -> None:
    """Copy a base's weights, all of them and no others, into a new model."""
    own = {name: value for name, value in weights_of(model).items() if name.startswith(_PRETRAINED)}
    repeated = set(model.state_dict()) - set(weights_of(model))
    given = {name: value for name, value in base.items() if name not in repeated}
    shapes = {name: tuple(value.shape) for name, value in given.items()}
    load_weights(own, shapes, given.items(), what="the base weights", dtype=torch.float32)
