"""Our model folders for transformers' auto classes; importing this module registers them.

    import fo1_model.hub
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)

``FO1Model.from_pretrained`` and ``Processor.from_pretrained`` do the same without this module. It
is not imported by ``fo1_model`` itself, which has to stay light.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedConfig

from fo1_model.checkpoint import load_processor, read_model
from fo1_model.config import MODEL_TYPE
from fo1_model.errors import SettingError
from fo1_model.model import FO1Model
from fo1_model.processing import Processor

_ABOUT_REPOSITORIES = {
    *("adapter_kwargs", "cache_dir", "code_revision", "force_download", "local_files_only"),
    *("proxies", "revision", "token", "trust_remote_code", "_from_auto", "_commit_hash"),
}
"""What the auto classes pass on about repositories and their code; a folder of ours has neither."""
_WITHOUT_EFFECT = {"dtype", "torch_dtype", "transformers_version", "_name_or_path"}
"""Values of a config that the auto classes write into it themselves."""


class FO1Config(PreTrainedConfig):
    """``config.json`` of a model folder as transformers sees it; ``model`` is a ``ModelConfig``."""

    model_type = MODEL_TYPE


class FO1AutoModel:
    """What ``AutoModel`` calls for one of our folders; it gives an ``FO1Model``."""

    config_class = FO1Config

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device_map: str | int | torch.device | Mapping[str, str | int | torch.device] | None = None,
        subfolder: str = "",
        **options: Any,
    ) -> FO1Model:
        """Read the model of a folder, in eval mode.

        Args:
            path: Folder that ``save_pretrained`` wrote.
            config: As the auto class read it; it may say nothing else than the folder does.
            dtype: Type of the weights; "auto" and None keep each as it is stored.
            torch_dtype: Older name of ``dtype``.
            device_map: The one device of the whole model: a device, ``{"": device}``, or "auto" for
                the machine's accelerator where there is one.
            subfolder: Folder below ``path`` that holds the model.
            options: What else the auto class passes on; only what is about repositories is let
                through.

        Raises:
            SettingError: For an unknown option, or a placement on several devices.
        """
        folder = Path(path) / subfolder
        _refuse_unknown(options, "AutoModel")
        if config is not None:
            _refuse_changes(config, folder)
        return read_model(folder, dtype=_dtype(dtype or torch_dtype), device=_device(device_map))


class FO1Processor:
    """What ``AutoProcessor`` calls for one of our folders; it gives a ``Processor``."""

    @classmethod
    def from_pretrained(cls, path: str | Path, *, subfolder: str = "", **options: Any) -> Processor:
        """Read the processor of a folder; arguments and errors as for `FO1AutoModel`."""
        _refuse_unknown(options, "AutoProcessor")
        return load_processor(Path(path) / subfolder)


def register() -> None:
    """Make our folders known to transformers' auto classes; a second call changes nothing."""
    AutoConfig.register(MODEL_TYPE, FO1Config, exist_ok=True)
    AutoModel.register(FO1Config, FO1AutoModel, exist_ok=True)
    AutoProcessor.register(FO1Config, FO1Processor, exist_ok=True)


def _refuse_unknown(options: Iterable[str], what: str) -> None:
    """Raise SettingError for options that would change nothing: silence would pass for consent."""
    if unknown := sorted(set(options) - _ABOUT_REPOSITORIES):
        known = "dtype, device_map and subfolder" if what == "AutoModel" else "subfolder"
        raise SettingError(
            f"{what}.from_pretrained: {', '.join(unknown)} is not known for a {MODEL_TYPE} folder, "
            f"which takes {known}; leave it out"
        )


def _refuse_changes(config: PreTrainedConfig, folder: Path) -> None:
    """Raise SettingError where a config says something else than the folder's file.

    The auto class writes keyword arguments into the config when it has a field of that name.
    """
    given, stored = _values(config), _values(FO1Config.from_pretrained(folder))
    names = sorted((given.keys() | stored.keys()) - _WITHOUT_EFFECT)
    if changed := [name for name in names if given.get(name) != stored.get(name)]:
        raise SettingError(
            f"AutoModel.from_pretrained: {', '.join(changed)} differs from {folder}/config.json, "
            "and a stored model is read as it is; leave it out"
        )


def _values(config: PreTrainedConfig) -> dict[str, Any]:
    # The auto class keeps this one under a name that to_dict leaves out.
    return {**config.to_dict(), "attn_implementation": config._attn_implementation}


def _dtype(value: str | torch.dtype | None) -> torch.dtype | None:
    if value is None or value == "auto":
        return None
    if isinstance(value, torch.dtype):
        return value
    dtype = getattr(torch, value.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise SettingError(f"dtype={value!r} is no floating torch dtype; write bfloat16, say")
    return dtype


def _device(device_map: Any) -> torch.device:
    """Return the one device that a ``device_map`` names."""
    if device_map is None:
        return torch.device("cpu")
    wanted = device_map
    if isinstance(wanted, Mapping) and set(wanted) == {""}:
        wanted = wanted[""]
    # What accelerate would make of "auto" for a model that fits on one device.
    if wanted == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise SettingError(
            f"device_map={device_map!r} is not supported: the whole model lies on one device; "
            "write 'auto', a device such as 'cuda:0', or {'': device}"
        ) from error


register()
