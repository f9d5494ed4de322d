"""From our ``ModelConfig`` to the release's flat config."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from transformers import Qwen2_5_VLConfig

from fo1_model.config import ModelConfig
from fo1_model.errors import SettingError
from fo1_model.release.configs import (
    MODEL_TYPE,
    OWN_KEY,
    TEXT_DEFAULTS,
    Shapes,
    config_of_release,
    linear_layers,
)
from fo1_model.release.names import CONNECTOR, EMBEDDING

_VISION_KEYS = (
    *(
        "depth",
        "hidden_size",
        "intermediate_size",
        "num_heads",
        "fullatt_block_indexes",
        "patch_size",
    ),
    *(
        "temporal_patch_size",
        "spatial_merge_size",
        "window_size",
        "tokens_per_second",
        "out_hidden_size",
    ),
)
_TOLD = ("vlm", "auxiliary", "region", "connector", "num_region_tokens", "image_projector_layers")
"""Fields of ``ModelConfig`` that the release's keys and tensors tell."""


def release_of_config(
    config: ModelConfig, shapes: Shapes, vocabulary: Mapping[str, int]
) -> dict[str, Any]:
    """Return the flat config of an exported model.

    That of an imported one is given back as it was, unless the model has become another since.
    Where the release's keys do not give the config back, our own goes along under ``fo1``; only
    this code reads it.

    Args:
        config: Ours.
        shapes: Released name -> shape of what is exported.
        vocabulary: Token -> id.

    Raises:
        SettingError: For a model that the release has no form for.
    """
    if config.vlm.family != "qwen2_5_vl":
        raise SettingError(f"VLMConfig.family={config.vlm.family!r}: the release is a qwen2_5_vl")
    if config.region.features == "auxiliary" or not config.builds_auxiliary:
        raise SettingError(
            f"RegionConfig.features={config.region.features!r}: the release cannot run one branch "
            "alone without the other's tower"
        )

    def says_it_all(flat: Mapping[str, Any]) -> bool:
        back = config_of_release(flat, shapes, config.num_region_tokens)
        return replace(back, release=None) == replace(config, release=None)

    # An imported model goes back out with its own config, keys that we do not know included.
    known = config.release or {}
    if known and says_it_all(known):
        return dict(known)
    own = {OWN_KEY: {**config.to_dict(), "release": None}}
    kept = {key: value for key, value in known.items() if key != OWN_KEY}
    if kept:
        back = config_of_release(kept, shapes, config.num_region_tokens)
        if all(getattr(back, part) == getattr(config, part) for part in _TOLD):
            return {**kept, **own}
    flat = {**kept, **_base_keys(config, vocabulary), **_region_keys(config, shapes)}
    return flat if says_it_all(flat) else {**flat, **own}


def _base_keys(config: ModelConfig, vocabulary: Mapping[str, int]) -> dict[str, Any]:
    """Return the Qwen2.5-VL part, text fields at top level."""
    parsed: Any = Qwen2_5_VLConfig(**config.vlm.config)
    text, vision = parsed.text_config, parsed.vision_config
    copied = (
        *(
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        ),
        *(
            "num_key_value_heads",
            "rms_norm_eps",
            "max_position_embeddings",
            "sliding_window",
            *TEXT_DEFAULTS,
        ),
    )
    rope = text.rope_parameters
    mrope = {
        "type": "default",
        "rope_type": "default",
        "mrope_section": list(rope["mrope_section"]),
    }
    tokens = {
        "bos_token_id": "<|endoftext|>",
        "eos_token_id": "<|im_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {
        "architectures": ["OmChatQwen25VLForCausalLM"],
        "model_type": MODEL_TYPE,
        **{key: getattr(text, key) for key in copied},
        "rope_theta": rope["rope_theta"],
        "rope_scaling": mrope,
        "tie_word_embeddings": parsed.tie_word_embeddings,
        **{key: vocabulary[token] for key, token in tokens.items() if token in vocabulary},
        "vision_config": {
            "model_type": "qwen2_5_vl",
            **{key: getattr(vision, key) for key in (*_VISION_KEYS, "in_channels", "hidden_act")},
        },
    }


def _region_keys(config: ModelConfig, shapes: Shapes) -> dict[str, Any]:
    """Return the ``mm_*`` keys and what belongs to them."""
    region = config.region
    hidden = shapes[EMBEDDING][1]
    base = tuple(config.auxiliary.dims) == (128, 256, 512, 1024)
    strategies = {(True, True): "hybrid", (False, True): "feature_map_based"}
    frames = {"primary": "concat", "auxiliary": "concat_aux_pos"}

    def projector(layers: int) -> str:
        return {0: "identity", 1: "linear"}.get(layers, f"mlp{layers}x_gelu")

    return {
        "mm_vision_tower": "resources/Qwen2.5-VL-3B-Instruct-Vision_Tower",
        "mm_projector_type": projector(config.image_projector_layers),
        "mm_hidden_size": hidden,
        "mm_vision_tower_aux": f"resources/davit-{'base' if base else 'large'}.pth",
        "mm_projector_aux_type": projector(config.connector.num_layers),
        "mm_region_hidden_size": max(shapes[name][1] for name in linear_layers(shapes, CONNECTOR)),
        "mm_roi_output_size": region.roi_size,
        "mm_apply_position_embedding": region.box_embedding or region.map_embedding,
        "mm_pos_embedding_strategy": strategies.get(
            (region.box_embedding, region.map_embedding), "bbox_based"
        ),
        "mm_use_vision_tower_region_feature": True,
        "mm_use_vt_region_feature_only": region.features == "primary",
        "mm_use_simpleFPN_for_vt": region.pyramid,
        "mm_region_feature_combination": frames[region.box_frame],
        "mm_apply_region_layer_norm": region.region_norm,
        "mm_use_region_index_token": True,
        "mm_num_region_tokens": config.num_region_tokens,
        "aux_image_size": config.auxiliary.size,
        "aux_image_aspect_ratio": config.auxiliary.resize,
        "tokenizer_padding_side": "right",
        "delay_load": True,
    }
