"""OPN from an OmDet-Turbo: its weights, and its words "object" and "Detect object." as prompts.

Everything but the text tower is taken over, so that OPN starts as OmDet-Turbo asked for "object":
with a task of one token both give the same boxes and scores. What differs:

- OmDet-Turbo's several task tokens ("Detect object." with start and end) become one, their mean.
- OPN letterboxes where OmDet-Turbo squashes.
- OPN never prefers a border position that has no anchor.

Batch statistics are OmDet-Turbo's (normalization "batch"), the logit bias is 0 as it has none, and
the denoising query, which inference does not use, starts afresh.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    OmDetTurboConfig,
    OmDetTurboForObjectDetection,
    OmDetTurboProcessor,
)

from fo1_model.detectors.pretrained import load_model, load_part
from fo1_model.errors import SettingError
from fo1_model.opn.config import OPNConfig
from fo1_model.opn.network import OPN, new_opn, omdet_config
from fo1_model.weights import check_names

WORD = "object"
"""Word that OmDet-Turbo is asked for; its processor makes the task "Detect object." of it."""
DENOISING_GROUPS = 5
"""Groups as in the named sizes; OmDet-Turbo's config says nothing of its training."""
FILES = (
    ("config.json",),
    ("model.safetensors", "model.safetensors.index.json"),
    ("preprocessor_config.json", "processor_config.json"),
    ("tokenizer.json", "vocab.json"),
)
"""Files that a folder must hold, one of each line."""
_OF_TEXT = {"text_config", "text_projection_in_dim", "text_projection_out_dim", "cache_size"}
_OF_TRAINING = {"encoder_dropout", "encoder_feedforward_dropout", "decoder_dropout", "init_std"}
_WITHOUT_EFFECT = {"disable_custom_kernels", "is_encoder_decoder"}
OF_OTHER_PARTS = _OF_TEXT | _OF_TRAINING | _WITHOUT_EFFECT
"""Fields of OmDetTurboConfig that say nothing about what OPN takes over."""


def warm_start(folder: str | Path) -> OPN:
    """Return an OPN, to be trained, from an OmDet-Turbo, on the CPU in float32.

    Args:
        folder: An OmDet-Turbo in the Hugging Face layout: config.json, safetensors (one file or
            several), image processor and tokenizer.

    Raises:
        SettingError: A file is missing or is a pickle in place of safetensors, OPN is not built for
            a setting, or a tensor is missing or left over.
    """
    folder = Path(folder)
    model = new_opn(warm_start_config(folder), seed=0)
    omdet = load_model(OmDetTurboForObjectDetection, str(folder))
    copy_weights(omdet, model)
    images, words = (load_part(auto, str(folder)) for auto in (AutoImageProcessor, AutoTokenizer))
    object_prompt, task_prompt = _prompts(omdet, OmDetTurboProcessor(images, words))
    with torch.no_grad():
        model.object_prompts.copy_(object_prompt)
        model.task_prompts.copy_(task_prompt)
        model.logit_bias.zero_()
    return model


def warm_start_config(folder: str | Path) -> OPNConfig:
    """Return the sizes that `warm_start` gives, from config.json and the image processor.

    Raises:
        SettingError: A file is missing, or OPN is not built for a setting.
    """
    folder = Path(folder)
    for names in FILES:
        if not any((folder / name).is_file() for name in names):
            pickled = any(folder.glob("*.bin")) and "model.safetensors" in names
            fix = "pickles are not read, save_pretrained the model again where its maker is trusted"
            raise SettingError(
                f"OmDet-Turbo checkpoint {folder}: {' or '.join(names)} is missing; "
                f"{fix if pickled else 'give the whole folder of the model'}"
            )
    return opn_config(read_omdet_config(folder), load_part(AutoImageProcessor, str(folder)))


def read_omdet_config(folder: str | Path) -> OmDetTurboConfig:
    """Read an OmDet-Turbo's config.json; that of another model is a SettingError."""
    config = load_part(AutoConfig, str(folder))
    if not isinstance(config, OmDetTurboConfig):
        raise SettingError(
            f"{folder}/config.json: model_type={config.model_type!r}, not an omdet-turbo"
        )
    return config


def opn_config(omdet: OmDetTurboConfig, image_processor: Any) -> OPNConfig:
    """Return OPN's sizes from OmDet-Turbo's.

    Args:
        omdet: OmDet-Turbo's config.
        image_processor: The image processor of its folder, for mean and standard deviation.

    Raises:
        SettingError: OPN has no counterpart for a setting.
    """
    backbone: Any = omdet.backbone_config
    if backbone.model_type != "timm_backbone":
        raise SettingError(
            f"OmDet-Turbo backbone_config.model_type={backbone.model_type!r}: OPN's is a timm one"
        )
    side = omdet.image_size
    if not isinstance(side, int):
        if len(set(side)) != 1:
            raise SettingError(f"OmDet-Turbo image_size={side}: OPN's input is square")
        side = side[0]
    mean, std = _normalisation(image_processor)
    config = OPNConfig(
        backbone=backbone.backbone,
        backbone_indices=tuple(backbone.out_indices),
        backbone_channels=tuple(omdet.encoder_in_channels),
        backbone_layout="channels_last"
        if omdet.apply_layernorm_after_vision_backbone
        else "channels_first",
        image_size=side,
        pixel_mean=mean,
        pixel_std=std,
        hidden_dim=omdet.decoder_hidden_dim,
        feedforward_dim=omdet.decoder_dim_feedforward,
        num_heads=omdet.decoder_num_heads,
        num_decoder_layers=omdet.decoder_num_layers,
        num_points=omdet.decoder_num_points,
        num_queries=omdet.num_queries,
        prompt_dim=omdet.class_embed_dim,
        normalization="batch",
        denoising_groups=DENOISING_GROUPS,
    )
    # Built back into an OmDet-Turbo config, OPN's must equal the given one: no setting gets lost.
    theirs, ours = _settings(omdet), _settings(omdet_config(config))
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise SettingError(
                f"OmDet-Turbo {name}={theirs.get(name)!r}: OPN is built with {ours.get(name)!r} "
                "there and cannot take over such weights; start from a model with the released "
                "design"
            )
    return config


def copy_weights(omdet: OmDetTurboForObjectDetection, model: OPN) -> None:
    """Copy all of OmDet-Turbo's tensors but the text tower's into OPN, in place.

    Args:
        omdet: Where they come from.
        model: An OPN of the same sizes.

    Raises:
        SettingError: A tensor is missing or left over.
    """
    given = {}
    for name, tensor in omdet.state_dict().items():
        unused = name.startswith("vision_backbone.layer_norms.") and not len(
            model.backbone.layer_norms
        )
        if not (unused or name.startswith("language_backbone.")):
            given[name.removeprefix("vision_") if name.startswith("vision_backbone.") else name] = (
                tensor
            )
    new = {"object_prompts", "task_prompts", "logit_bias", "noised_query"}
    check_names(set(model.state_dict()) - new, set(given), "the OmDet-Turbo checkpoint")
    model.load_state_dict(given, strict=False)  # a tensor of another shape raises all the same


@torch.no_grad()
def _prompts(omdet: OmDetTurboForObjectDetection, processor: Any) -> tuple[Tensor, Tensor]:
    """Return the class embedding of the word and the mean of its task's tokens, float32[E] each."""
    blank = Image.new("RGB", (32, 32))  # the processor takes no text without an image
    text = processor(images=blank, text=[[WORD]], return_tensors="pt")
    [object_prompt] = omdet.language_backbone(text["classes_input_ids"], encode_type="class")
    tokens, _ = omdet.language_backbone(
        text["tasks_input_ids"], mask=text["tasks_attention_mask"], encode_type="task"
    )
    return object_prompt, tokens.mean(0).squeeze(0)


def _normalisation(
    image_processor: Any,
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation for RGB in [0, 1]; the release gives them for 0 to 255."""
    if not image_processor.do_normalize:
        raise SettingError(
            "OmDet-Turbo image processor, do_normalize=False: OPN normalises its input"
        )
    white = 255.0 * image_processor.rescale_factor if image_processor.do_rescale else 255.0
    red, green, blue = (round(value / white, 6) for value in image_processor.image_mean)
    spread = tuple(round(value / white, 6) for value in image_processor.image_std)
    return (red, green, blue), (spread[0], spread[1], spread[2])


def _settings(config: OmDetTurboConfig) -> dict[str, Any]:
    """Return every setting of the parts that OPN takes over, by name."""
    names = set(OmDetTurboConfig.__annotations__) - OF_OTHER_PARTS - {"backbone_config"}
    values = {name: getattr(config, name) for name in names}
    backbone = config.backbone_config
    for name in (
        "backbone",
        "out_indices",
        "num_channels",
        "freeze_batch_norm_2d",
        "output_stride",
    ):
        values[f"backbone_config.{name}"] = getattr(backbone, name)
    values |= {f"backbone_config.{name}": value for name, value in config.timm_kwargs.items()}
    if not isinstance(config.image_size, int):
        values["image_size"] = config.image_size[0]
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }
