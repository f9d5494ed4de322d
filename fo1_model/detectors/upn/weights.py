"""UPN's published state dict: reading the file without running code in it, and its names for ours.

    backbone.model.backbone.*          Swin; queries, keys and values lie in one matrix there
    input_proj.N.*                     convolution and norm of a level
    transformer.level_embed, .tgt_embed, .fine_grained_prompt, .coarse_grained_prompt
    transformer.encoder.layers.N.*     self_attn, norm1, linear1, linear2, norm2
    transformer.enc_output*, .enc_out_bbox_embed.*
    transformer.decoder.layers.N.*     self_attn, norm2, cross_attn, norm1, linear1, linear2, norm3
    transformer.decoder.norm, .ref_point_head.*
    bbox_embed.N.*                     one head, under each layer's name, and again in
                                       transformer.decoder

Left out: Swin's `relative_position_index`, which follows from the window, and
`ref_point_head_point`, whose output the released code multiplies by zero. The file has the state
dict under `model` (`inference_wrapper.py`).
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fo1_model.detectors.upn.network import UPN, UPNNetworkConfig
from fo1_model.errors import SettingError
from fo1_model.weights import check_names, read_state, uninitialised

logger = logging.getLogger("fo1_model")

_SWIN = "backbone.model.backbone."
_MODULES = ("backbone", "input_proj", "transformer", "bbox_embed")
"""Names of the released network's top-level modules that have weights."""
_RENAMED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^backbone\.swin\.embeddings\.patch_embeddings\.projection", _SWIN + "patch_embed.proj"),
    (r"^backbone\.swin\.embeddings\.norm", _SWIN + "patch_embed.norm"),
    (r"^backbone\.swin\.encoder\.", _SWIN),
    (
        r"^backbone\.hidden_states_norms\.stage(\d+)",
        lambda found: f"{_SWIN}norm{int(found[1]) - 1}",
    ),
    (r"\.attention\.[qkv]_proj\.", ".attn.qkv."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.relative_position_bias\.", ".attn."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^input_projections\.", "input_proj."),
    (r"^(encoder|decoder)\.(\d+)\.", r"transformer.\1.layers.\2."),
    (r"^(transformer\..+)\.mlp\.fc(\d)\.", r"\1.linear\2."),
    (r"^(transformer\.encoder\..+)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^(transformer\.encoder\..+)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(transformer\.decoder\..+)\.self_attn\.[qkv]_proj\.", r"\1.self_attn.in_proj_"),
    (r"^(transformer\.decoder\..+)\.self_attn\.o_proj\.", r"\1.self_attn.out_proj."),
    (r"^(transformer\.decoder\..+)\.self_attn_layer_norm\.", r"\1.norm2."),
    (r"^(transformer\.decoder\..+)\.encoder_attn\.", r"\1.cross_attn."),
    (r"^(transformer\.decoder\..+)\.encoder_attn_layer_norm\.", r"\1.norm1."),
    (r"^(transformer\.decoder\..+)\.final_layer_norm\.", r"\1.norm3."),
    (r"^decoder_norm\.", "transformer.decoder.norm."),
    (r"^query_position\.", "transformer.decoder.ref_point_head."),
    (r"^proposal_projection\.", "transformer.enc_output."),
    (r"^proposal_norm\.", "transformer.enc_output_norm."),
    (r"^proposal_box_head\.", "transformer.enc_out_bbox_embed."),
    (r"^box_head\.", "bbox_embed.0."),
    (r"^level_embedding$", "transformer.level_embed"),
    (r"^queries$", "transformer.tgt_embed.weight"),
    (r"^prompts\.(coarse|fine)$", r"transformer.\1_grained_prompt.weight"),
)
"""Pattern and replacement, applied one after the other to one of our names."""
_UNUSED = re.compile(
    re.escape(_SWIN) + r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_index"
    r"|transformer\.decoder\.ref_point_head_point\.layers\.[01]\.(weight|bias)"
)
_HEAD_COPY = re.compile(r"(?:transformer\.decoder\.)?bbox_embed\.(\d+)\.(.+)")


def load_upn(path: str | Path, config: UPNNetworkConfig | None = None) -> UPN:
    """Return the network of a published state dict, on the CPU.

    Args:
        path: `upn_large.pth`, or the same as safetensors.
        config: Sizes; None takes those published.

    Raises:
        SettingError: The file is missing, unreadable or holds more than tensors, or names, shapes
            or values are not those of the network.
    """
    path = Path(path)
    given = read_state(path)
    with uninitialised():
        model = UPN(config or UPNNetworkConfig())
    model.load_state_dict(translated(given, model, str(path)))
    return model.eval()


def published_name(own: str) -> tuple[str, int | None]:
    """Return the published name of one of our tensors, and the third of its rows; None is all."""
    name = own
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    third = re.search(r"\.([qkv])_proj\.", own)
    return name, "qkv".index(third[1]) if third else None


def translated(given: Mapping[str, Tensor], model: UPN, what: str) -> dict[str, Tensor]:
    """Return our state dict from the published one.

    The released loader takes what it knows and ignores the rest. Here a missing name is an error,
    and so is one left over inside a module that we have: another architecture. Whole modules that
    the released network has not are left out, with a warning.

    Args:
        given: The published tensors by name.
        model: The network that they are for.
        what: The file, for messages.

    Raises:
        SettingError: Names or shapes are not the network's, copies of the head differ, or values
            are not finite.
    """
    foreign = sorted(name for name in given if name.split(".")[0] not in _MODULES)
    sources = {own: published_name(own) for own in model.state_dict()}
    rest = {
        name: given[name] for name in given if name not in foreign and not _UNUSED.fullmatch(name)
    }
    rest = _one_head(rest, model.config.num_decoder_layers, what)
    check_names({name for name, _ in sources.values()}, set(rest), what)
    if foreign:
        shown = ", ".join(foreign[:8])
        logger.warning("%s: %d weights are not UPN's: %s", what, len(foreign), shown)
    result = {}
    for own, value in model.state_dict().items():
        name, third = sources[own]
        shape = list(value.shape) if third is None else [3 * value.shape[0], *value.shape[1:]]
        if list(rest[name].shape) != shape:
            raise SettingError(
                f"{what}: {name} is {list(rest[name].shape)}, the network has {shape}"
            )
        result[own] = rest[name] if third is None else rest[name].chunk(3)[third]
        if not result[own].isfinite().all():
            raise SettingError(f"{what}: {name} holds values that are not finite")
    return result


def _one_head(given: Mapping[str, Tensor], num_layers: int, what: str) -> dict[str, Tensor]:
    """Return the same weights with the box head once, by the first layer's name.

    A file that stores shared tensors once has any one of the names. Copies that differ are a
    SettingError.
    """
    result: dict[str, Tensor] = {}
    for name, value in given.items():
        found = _HEAD_COPY.fullmatch(name)
        kept = f"bbox_embed.0.{found[2]}" if found and int(found[1]) < num_layers else name
        if kept in result and not torch.equal(result[kept], value):
            raise SettingError(
                f"{what}: decoder layers have box heads of their own; UPN's share one"
            )
        result[kept] = value
    return result
