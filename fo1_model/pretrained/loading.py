"""``from_pretrained`` and ``save_pretrained``: types, devices and repositories.

Weights go tensor by tensor from their file to their device, so that a model needs little more
memory than its own, and what lies on disk stays in the files it was saved in.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils.hub import convert_file_size_to_int

from fo1_model.checkpoint import is_release, load_stops, open_model, read_model, write_model
from fo1_model.config import MODEL_TYPE
from fo1_model.errors import SettingError
from fo1_model.model import FO1Model
from fo1_model.pretrained.config import FO1Config
from fo1_model.weights import MAX_FILE_BYTES, StoredWeights, check_weights, load_weights, weights_of

_DOWNLOAD = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_ABOUT_REPOSITORIES = {
    *("adapter_kwargs", "code_revision", "proxies", "trust_remote_code"),
    *("_from_auto", "_commit_hash", *_DOWNLOAD),
}
"""What the auto classes pass on about repositories and their code."""
_ALWAYS_SO = {"low_cpu_mem_usage": True, "use_safetensors": True}
"""Options of transformers that say what is the case anyway."""
_WITHOUT_EFFECT = {"dtype", "torch_dtype", "transformers_version", "_name_or_path"}
"""Values of a config that the auto classes write into it themselves."""
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
_STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
_KNOWN = (
    "dtype, device_map, max_memory, offload_folder, offload_buffers, attn_implementation and "
    "subfolder"
)

Place = str | int | torch.device


def load_pretrained(
    path: str | Path,
    *,
    config: PreTrainedConfig | None = None,
    dtype: str | torch.dtype | None = None,
    torch_dtype: str | torch.dtype | None = None,
    device_map: Place | Mapping[str, Place] | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: str | Path | None = None,
    offload_buffers: bool = False,
    attn_implementation: str | None = None,
    subfolder: str = "",
    **options: Any,
) -> FO1Model:
    """Return the model of a folder or a repository, in eval mode.

    Args:
        path: Folder that ``save_pretrained`` wrote, a released checkpoint's, or a repository's name
            where there is no such folder.
        config: As an auto class read it; it may say nothing else than the folder does, but for the
            attention.
        dtype: Type of the weights; "auto" and None keep each as it is stored.
        torch_dtype: Older name of ``dtype``.
        device_map: A device for all; a device, "cpu" or "disk" for each module by its name; or a
            strategy of accelerate's: "auto", "balanced", "balanced_low_0", "sequential".
        max_memory: Bytes or "20GB" for each device, for the strategies.
        offload_folder: Taken because others pass it on; weights on disk stay in their own files.
        offload_buffers: Whether buffers are moved out with their module's weights.
        attn_implementation: Attention of the VLM, as transformers names it.
        subfolder: Folder below ``path`` that holds the model.
        options: What else the auto classes pass on; only what is about repositories is let through.

    Raises:
        SettingError: For an unknown option, a placement that names no device or leaves a weight
            without one, and as ``fo1_model.checkpoint.load_model``.
    """
    del offload_folder
    refuse_unknown(options, type_name="FO1Model", known=_KNOWN)
    folder = folder_of(path, options) / subfolder
    if config is not None:
        attn_implementation = attn_implementation or config._attn_implementation
        _refuse_changes(config, folder)
    kept = _dtype(dtype or torch_dtype)
    if isinstance(device_map, Mapping) and set(device_map) == {""}:
        device_map = device_map[""]
    if device_map is None or (
        not isinstance(device_map, Mapping) and device_map not in _STRATEGIES
    ):
        model = read_model(folder, dtype=kept, device=_device(device_map or "cpu"))
    elif is_release(folder):
        raise SettingError(
            f"{folder}: a released checkpoint goes to one device, not device_map={device_map!r}; "
            "save it with save_model first"
        )
    else:
        model = _read_placed(folder, kept, device_map, max_memory, offload_buffers)
    if attn_implementation is not None:
        model.vlm.set_attn_implementation(attn_implementation)
    return model


def save_pretrained(
    model: FO1Model,
    path: str | Path,
    *,
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    max_shard_size: int | str = MAX_FILE_BYTES,
    safe_serialization: bool = True,
    **options: Any,
) -> None:
    """Write config and weights, the bytes of ``fo1_model.checkpoint.write_model``.

    Settings of ``generate`` are not stored: they follow from the tokenizer of the folder.

    Args:
        model: The model; weights that lie elsewhere are fetched one by one.
        path: Made when it is not there.
        is_main_process: False writes nothing, for ranks beside the first.
        state_dict: Weights to write in the place of the model's own, which other ranks hold.
        max_shard_size: Bytes, or "5GB", above which weights go into several files.
        safe_serialization: True; nothing else is written.
        options: None is known; ``variant`` None is let through.

    Raises:
        SettingError: For an unknown option, or a state dict of another model.
    """
    if not safe_serialization:
        raise SettingError("safe_serialization=False: weights are safetensors only; leave it out")
    if unknown := sorted(name for name, value in options.items() if value is not None):
        raise SettingError(f"save_pretrained: {', '.join(unknown)} is not known; leave it out")
    if is_main_process:
        limit = convert_file_size_to_int(max_shard_size)
        write_model(model, path, max_file_bytes=limit, state_dict=state_dict)


def refuse_unknown(options: Mapping[str, Any], *, type_name: str, known: str) -> None:
    """Raise SettingError for options that would change nothing: silence would pass for consent."""
    unknown = [
        name
        for name, value in options.items()
        if name not in _ABOUT_REPOSITORIES and (name not in _ALWAYS_SO or value is False)
    ]
    if unknown:
        raise SettingError(
            f"{type_name}.from_pretrained: {', '.join(sorted(unknown))} is not known for a "
            f"{MODEL_TYPE} folder, which takes {known}; leave it out"
        )


def folder_of(path: str | Path, options: Mapping[str, Any]) -> Path:
    """Return a folder, or the local copy of a repository of that name.

    Args:
        path: The folder, or the name where there is no such folder.
        options: Options of ``huggingface_hub.snapshot_download`` among others.

    Raises:
        SettingError: When there is neither.
    """
    if Path(path).exists() or not _REPOSITORY.fullmatch(str(path)):
        return Path(path)
    given = {name: options[name] for name in _DOWNLOAD if options.get(name) is not None}
    try:
        return Path(snapshot_download(str(path), allow_patterns=_FILES, **given))
    except (OSError, ValueError) as error:  # what the hub and its cache raise
        raise SettingError(
            f"{path} is no folder, and no repository of that name was found: {error}"
        ) from error


def _read_placed(
    folder: Path,
    dtype: torch.dtype | None,
    device_map: Any,
    max_memory: Any,
    offload_buffers: bool,
) -> FO1Model:
    """Return the model of a folder over several devices."""
    from accelerate import dispatch_model

    model, stored = open_model(folder)
    own = weights_of(model)
    check_weights(own, stored.shapes, str(folder))
    places = _places(model, stored, dtype, device_map, max_memory)
    by_place: dict[Place, list[str]] = {}
    for name in own:
        by_place.setdefault(_place_of(name, places), []).append(name)
    on_disk = by_place.pop("disk", [])
    for place, names in by_place.items():
        load_weights(
            {name: own[name] for name in names},
            {name: stored.shapes[name] for name in names},
            stored.tensors(set(names)),
            what=str(folder),
            dtype=dtype,
            device=_device(place),
        )
    index = _leave_on_disk(model, stored, on_disk, dtype)
    if on_disk or len(by_place) > 1:
        dispatch_model(
            model,
            device_map=places,
            offload_index=index or None,
            offload_buffers=offload_buffers,
            skip_keys=list(model._skip_keys_device_placement or []),
        )
    else:
        model.to(device=_device(next(iter(by_place))))
    load_stops(model, folder)
    return model.eval()


def _places(
    model: FO1Model,
    stored: StoredWeights,
    dtype: torch.dtype | None,
    device_map: Any,
    max_memory: Any,
) -> dict[str, Any]:
    """Return the device of each module by its name."""
    if isinstance(device_map, Mapping):
        for place in device_map.values():
            if place != "disk":
                _device(place)
        given = dict(device_map)
        # A tied head is its embedding's weight, so it goes where that goes.
        for alias, source in model.all_tied_weights_keys.items():
            given[alias.rpartition(".")[0]] = _place_of(source, given)
        return _parted(model, given)
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    one = next(iter(stored.shapes))
    sizes: dict[str, Any] = {
        "no_split_module_classes": sorted(model._no_split_modules or []),
        "dtype": dtype or stored.read(one).dtype,
    }
    if device_map != "sequential":
        low_zero = device_map == "balanced_low_0"
        max_memory = get_balanced_memory(model, max_memory, low_zero=low_zero, **sizes)
    return dict(infer_auto_device_map(model, max_memory=max_memory, **sizes))


def _parted(module: nn.Module, places: Mapping[str, Place], name: str = "") -> dict[str, Place]:
    """Return places in which no module is named inside another, as accelerate needs them."""
    inside = f"{name}." if name else ""
    if not any(other.startswith(inside) and other != name for other in places):
        return {name: _place_of(name, places)}
    own = [n for n, _ in (*module.named_parameters(), *module.named_buffers()) if "." not in n]
    parted = {f"{inside}{leaf}": _place_of(f"{inside}{leaf}", places) for leaf in own}
    for child, part in module.named_children():
        if any(True for _ in (*part.parameters(), *part.buffers())):
            parted |= _parted(part, places, f"{inside}{child}")
    return parted


def _place_of(name: str, places: Mapping[str, Place]) -> Place:
    """Return the place of the module that a weight is in, the innermost that is named."""
    parts = name.split(".")
    for end in range(len(parts), -1, -1):
        if (module := ".".join(parts[:end])) in places:
            return places[module]
    raise SettingError(
        f"device_map names no module of {name}; it names {', '.join(places)}; add one, or '' for "
        "all that is left"
    )


def _leave_on_disk(
    model: FO1Model, stored: StoredWeights, names: Iterable[str], dtype: torch.dtype | None
) -> dict[str, dict[str, str]]:
    """Empty these weights, and return where accelerate finds each, under every name it has."""
    file_of = {name: file for file, held in stored.files.items() for name in held}
    tied = model.all_tied_weights_keys
    index: dict[str, dict[str, str]] = {}
    for name in names:
        entry = {"safetensors_file": str(stored.folder / file_of[name]), "weight_name": name}
        kept = dtype or stored.read(name).dtype
        entry["dtype"] = str(kept).removeprefix("torch.")
        empty = torch.empty(stored.shapes[name], dtype=kept, device="meta")
        for alias in (name, *(other for other, source in tied.items() if source == name)):
            index[alias] = entry
            owner, _, leaf = alias.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(empty))
    return index


def _refuse_changes(config: PreTrainedConfig, folder: Path) -> None:
    """Raise SettingError where a config says something else than the folder's file.

    The auto class writes keyword arguments into the config when it has a field of that name.
    """
    given, stored = config.to_dict(), FO1Config.from_pretrained(folder).to_dict()
    names = sorted((given.keys() | stored.keys()) - _WITHOUT_EFFECT)
    if changed := [name for name in names if given.get(name) != stored.get(name)]:
        raise SettingError(
            f"FO1Model.from_pretrained: {', '.join(changed)} differs from {folder}/config.json, "
            "and a stored model is read as it is; leave it out"
        )


def _dtype(value: str | torch.dtype | None) -> torch.dtype | None:
    if value is None or value == "auto":
        return None
    if isinstance(value, torch.dtype):
        return value
    dtype = getattr(torch, value.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise SettingError(f"dtype={value!r} is no floating torch dtype; write bfloat16, say")
    return dtype


def _device(place: Any) -> torch.device:
    try:
        return torch.device(place)
    except (RuntimeError, TypeError) as error:
        raise SettingError(
            f"device_map={place!r} is no device; write one such as 'cuda:0', a map from modules to "
            f"devices, 'cpu' and 'disk', or one of {', '.join(_STRATEGIES)}"
        ) from error
