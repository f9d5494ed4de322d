"""From the release's flat config (as transformers 4.50 wrote it) to our ``ModelConfig``.

Widths and depths come from the tensors; the config says only what they cannot: heads, norms,
positions, and the ``mm_*`` keys that name modes. Keys that transformers left out for being its
defaults have those here.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fo1_model.config import AuxiliaryConfig, ConnectorConfig, ModelConfig, RegionConfig
from fo1_model.errors import SettingError
from fo1_model.release.names import AUXILIARY, CONNECTOR, EMBEDDING, HEAD, PROJECTOR, REGION, VISION
from fo1_model.sizes import davit, qwen2_5_vl

MODEL_TYPE = "omchat_qwen2_5_vl"
OWN_KEY = "fo1"
"""Key of our whole config inside an exported one, where the release's own keys do not say it
all."""
_COMBINATIONS = ("concat", "concat_aux_pos")
_STRATEGIES = ("bbox_based", "feature_map_based", "hybrid")
_DAVIT_HEAD_DIM = 32
"""Channels a head of the release's ``davit-base`` and ``davit-large``, the same in every stage."""
_SQUASHED_SIDE = 768
"""Side of a squashed image in pixels, whatever ``aux_image_size`` says (davit/configs.py)."""
TEXT_DEFAULTS = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
}
"""Text fields that are carried over where they differ from these values."""
Shapes = Mapping[str, Sequence[int]]


def config_of_release(
    flat: Mapping[str, Any], shapes: Shapes, num_region_tokens: int
) -> ModelConfig:
    """Return our config of a released model.

    Args:
        flat: Its ``config.json``.
        shapes: Released name -> shape.
        num_region_tokens: Number of ``<regionN>`` in its tokenizer.

    Raises:
        SettingError: Naming the key and the value for what the release cannot run, for a key that
            is missing, and naming the tensor that the widths cannot be read from.
    """
    if OWN_KEY in flat:
        return ModelConfig.from_dict({**flat[OWN_KEY], "release": dict(flat)})
    _check_modes(flat)
    primary_only = bool(flat.get("mm_use_vt_region_feature_only", False))
    tied = HEAD not in shapes
    vlm = qwen2_5_vl(
        text=_text(flat, shapes), vision=_vision(flat, shapes), mrope_section=_mrope(flat)
    )
    vlm.config["tie_word_embeddings"] = tied
    return ModelConfig(
        vlm=vlm,
        auxiliary=_auxiliary(flat, shapes, keep_unread=primary_only),
        region=_region(flat, shapes, primary_only=primary_only),
        connector=ConnectorConfig(num_layers=len(linear_layers(shapes, CONNECTOR))),
        num_region_tokens=num_region_tokens,
        image_projector_layers=len(linear_layers(shapes, PROJECTOR)),
        release=dict(flat),
    )


def bare_layers(flat: Mapping[str, Any]) -> set[str]:
    """Return the prefixes whose single layer has no number in its name."""
    keys = {PROJECTOR: "mm_projector_type", CONNECTOR: "mm_projector_aux_type"}
    return {prefix for prefix, key in keys.items() if flat.get(key, "linear") == "linear"}


def _check_modes(flat: Mapping[str, Any]) -> None:
    """Refuse what the release cannot run, or what it could mean by it is unknown."""
    tower = str(flat.get("mm_vision_tower"))
    if "qwen2.5-vl" not in tower.lower():
        raise SettingError(f"mm_vision_tower={tower!r}: the release knows Qwen2.5-VL's tower alone")
    tower = str(flat.get("mm_vision_tower_aux"))
    if "davit" not in tower.lower():
        raise SettingError(f"mm_vision_tower_aux={tower!r}: the release knows DaViT towers alone")
    for key, default, allowed in (
        ("mm_region_feature_combination", "concat", _COMBINATIONS),
        ("mm_pos_embedding_strategy", "bbox_based", _STRATEGIES),
    ):
        if flat.get(key, default) not in allowed:
            raise SettingError(f"{key}={flat[key]!r}: the release runs only {', '.join(allowed)}")
    for key, pattern in (
        ("mm_projector_type", r"identity|linear|mlp[1-9]\d*x_gelu"),
        ("mm_projector_aux_type", r"linear|mlp[1-9]\d*x_gelu"),
    ):
        if not re.fullmatch(pattern, str(flat.get(key, "linear"))):
            raise SettingError(f"{key}={flat[key]!r} is not supported; {pattern} is")
    if not flat.get("mm_use_vision_tower_region_feature", False):
        raise SettingError(
            "mm_use_vision_tower_region_feature=False: the release cannot run the auxiliary "
            "branch alone"
        )
    if flat.get("tune_mm_mlp_adapter") and flat.get("mm_use_im_start_end"):
        raise SettingError(
            "tune_mm_mlp_adapter and mm_use_im_start_end: the release cannot run both"
        )


def _text(flat: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    rows, hidden = _shape(shapes, EMBEDDING)
    layer = "model.layers.0."
    heads = _key(flat, "num_attention_heads")
    text = {
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": _shape(shapes, f"{layer}mlp.gate_proj.weight")[0],
        "num_hidden_layers": _count(shapes, r"model\.layers\.(\d+)\..*"),
        "num_attention_heads": heads,
        "num_key_value_heads": _shape(shapes, f"{layer}self_attn.k_proj.weight")[0]
        * heads
        // hidden,
    }
    given = {
        "rms_norm_eps": flat.get("rms_norm_eps", 1e-5),
        "max_position_embeddings": flat.get("max_position_embeddings", 32768),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": flat.get("rope_theta", 1e6),
            "mrope_section": _mrope(flat),
        },
    }
    unusual = {
        key: flat[key] for key, usual in TEXT_DEFAULTS.items() if flat.get(key, usual) != usual
    }
    if "use_sliding_window" in unusual:
        raise SettingError(
            "use_sliding_window=True: no released model has it and it is not supported"
        )
    return {**text, **given, **unusual}


def _mrope(flat: Mapping[str, Any]) -> list[int]:
    scaling = _key(flat, "rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "mrope") or "mrope_section" not in scaling:
        raise SettingError(
            f"rope_scaling={scaling!r}: expected rope_type 'default' with an mrope_section"
        )
    return list(scaling["mrope_section"])


def _vision(flat: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    given = _key(flat, "vision_config")
    hidden, _, temporal, patch, _ = _shape(shapes, f"{VISION}patch_embed.proj.weight")
    merged = _shape(shapes, f"{VISION}merger.mlp.0.weight")[1]
    vision = {
        "depth": _count(shapes, rf"{re.escape(VISION)}blocks\.(\d+)\..*"),
        "hidden_size": hidden,
        "intermediate_size": _shape(shapes, f"{VISION}blocks.0.mlp.gate_proj.weight")[0],
        "num_heads": given.get("num_heads", 16),
        "fullatt_block_indexes": list(given.get("fullatt_block_indexes", [7, 15, 23, 31])),
        "patch_size": patch,
        "temporal_patch_size": temporal,
        "spatial_merge_size": round((merged / hidden) ** 0.5),
        "window_size": given.get("window_size", 112),
        "tokens_per_second": given.get("tokens_per_second", 4),
        "out_hidden_size": _shape(shapes, f"{VISION}merger.mlp.2.weight")[0],
    }
    if given.get("hidden_act", "silu") != "silu":
        vision["hidden_act"] = given["hidden_act"]
    return vision


def _auxiliary(flat: Mapping[str, Any], shapes: Shapes, *, keep_unread: bool) -> AuxiliaryConfig:
    dims = [_shape(shapes, f"{AUXILIARY}convs.{stage}.proj.weight")[0] for stage in range(4)]
    prefix = re.escape(AUXILIARY)
    depths = [_count(shapes, rf"{prefix}blocks\.{stage}\.(\d+)\..*") for stage in range(4)]
    first = max(dims[0] // _DAVIT_HEAD_DIM, 1)
    heads = [first * dim // dims[0] for dim in dims]
    return AuxiliaryConfig(
        kwargs=davit(depths=depths, dims=dims, heads=heads, window=12),
        resize=_key(flat, "aux_image_aspect_ratio"),
        size=_SQUASHED_SIDE,
        drop_path=0.1,
        keep_unread=keep_unread,
    )


def _region(flat: Mapping[str, Any], shapes: Shapes, *, primary_only: bool) -> RegionConfig:
    """Return modes as the release's code branches.

    There the primary branch alone ignores strategy and combination.
    """
    pyramid = bool(flat.get("mm_use_simpleFPN_for_vt", False))
    norms = {f"{REGION}{branch}_region_norm.weight" for branch in ("aux", "vt")}
    region_norm = bool(norms & set(shapes))
    if region_norm and primary_only:
        raise SettingError(
            "mm_apply_region_layer_norm with mm_use_vt_region_feature_only: the release makes the "
            "norm and never applies it; leave its tensors out"
        )
    positions = bool(flat.get("mm_apply_position_embedding", True))
    strategy = flat.get("mm_pos_embedding_strategy", "bbox_based")
    auxiliary_frame = flat.get("mm_region_feature_combination", "concat") == "concat_aux_pos"
    return RegionConfig(
        features="primary" if primary_only else "hybrid",
        pyramid=pyramid,
        pyramid_dim=_shape(shapes, f"{REGION}simple_fpn.simfp_3.0.weight")[0] if pyramid else 512,
        roi_size=flat.get("mm_roi_output_size", 7),
        box_frame="auxiliary" if auxiliary_frame and not primary_only else "primary",
        region_norm=region_norm,
        box_embedding=positions and (primary_only or strategy in ("bbox_based", "hybrid")),
        map_embedding=positions
        and not primary_only
        and strategy in ("feature_map_based", "hybrid"),
    )


def _key(flat: Mapping[str, Any], key: str) -> Any:
    if key not in flat:
        raise SettingError(f"config.json lacks {key}, which the tensors do not tell")
    return flat[key]


def _shape(shapes: Shapes, name: str) -> Sequence[int]:
    if name not in shapes:
        raise SettingError(f"the checkpoint lacks {name}, from which a width is read")
    return shapes[name]


def _count(shapes: Shapes, pattern: str) -> int:
    """Return how many numbers ``pattern`` finds among the names."""
    return len({found.group(1) for name in shapes if (found := re.fullmatch(pattern, name))})


def linear_layers(shapes: Shapes, prefix: str) -> list[str]:
    """Return the linear layers below a prefix: weights with a number, or the one without."""
    return [name for name in shapes if re.fullmatch(rf"{re.escape(prefix)}(\d+\.)?weight", name)]
