"""Named sizes: whole model configs, from one that runs in milliseconds to the released model's.

The numbers of the 3B model are those of the released checkpoint's family.
"""

from collections.abc import Callable
from typing import Any

from fo1_model.config import AuxiliaryConfig, ModelConfig, NewRowsConfig, RegionConfig, VLMConfig


def qwen2_5_vl(
    *, text: dict[str, Any], vision: dict[str, Any], mrope_section: list[int]
) -> VLMConfig:
    """Return a Qwen2.5-VL of any width, with what the whole family has in common filled in."""
    family_text = {
        "rms_norm_eps": 1e-6,
        # The processor asks the tokenizer for ids; the class's defaults would lie outside a small
        # vocabulary.
        "bos_token_id": None,
        "eos_token_id": None,
        "max_position_embeddings": 128000,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": mrope_section,
        },
    }
    family_vision = {
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 112,
        "tokens_per_second": 2,
        "out_hidden_size": text["hidden_size"],
    }
    return VLMConfig(
        family="qwen2_5_vl",
        config={
            "text_config": {**family_text, **text},
            "vision_config": {**family_vision, **vision},
            "tie_word_embeddings": True,
        },
    )


def davit(*, depths: list[int], dims: list[int], heads: list[int], window: int) -> dict[str, Any]:
    """Return ``AuxiliaryConfig.kwargs`` of a DaViT."""
    return {"depths": depths, "embed_dims": dims, "num_heads": heads, "window_size": window}


def debug() -> ModelConfig:
    """Return a model that runs the whole path on a CPU in milliseconds, too small to learn."""
    return ModelConfig(
        vlm=qwen2_5_vl(
            text={
                "vocab_size": 2048,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
            },
            vision={
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "fullatt_block_indexes": [1],
            },
            mrope_section=[2, 3, 3],
        ),
        auxiliary=AuxiliaryConfig(
            kwargs=davit(depths=[1, 1, 1, 1], dims=[16, 24, 32, 40], heads=[1, 2, 2, 2], window=4),
            resize="squash",
            size=64,
        ),
        region=RegionConfig(pyramid_dim=16),
    )


def tiny() -> ModelConfig:
    """Return a model that learns the drawn world on a CPU in minutes.

    It starts from the base that `pipelines.tiny_base.build` makes. Small decoders learn look-up
    best with starts of one over the square root of the width. The rope base leaves most of each
    head's dimensions slow enough to compare content over a prompt of a few hundred tokens. The
    auxiliary tower costs much of a step, hence its narrow first stages.
    """
    return ModelConfig(
        vlm=qwen2_5_vl(
            text={
                "vocab_size": 1152,
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "initializer_range": 96**-0.5,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e5,
                    "mrope_section": [4, 4, 4],
                },
            },
            vision={
                "depth": 2,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_heads": 4,
                "fullatt_block_indexes": [1],
                "initializer_range": 64**-0.5,
            },
            mrope_section=[4, 4, 4],
        ),
        auxiliary=AuxiliaryConfig(
            kwargs=davit(depths=[1, 1, 1, 1], dims=[16, 32, 64, 128], heads=[1, 2, 4, 8], window=8),
            resize="squash",
            size=128,
        ),
        region=RegionConfig(pyramid_dim=32),
        # The base writes groundings with these tokens, as Qwen2.5-VL does.
        new_rows=NewRowsConfig(
            spread=1.0,
            like={
                "<ground>": "<|object_ref_start|>",
                "</ground>": "<|object_ref_end|>",
                "<objects>": "<|box_start|>",
                "</objects>": "<|box_end|>",
            },
        ),
    )


def qwen2_5_vl_3b() -> ModelConfig:
    """Return the released model: Qwen2.5-VL-3B, Florence-2-large's DaViT, 512-channel pyramid."""
    return ModelConfig(
        vlm=qwen2_5_vl(
            text={
                "vocab_size": 151936,
                "hidden_size": 2048,
                "intermediate_size": 11008,
                "num_hidden_layers": 36,
                "num_attention_heads": 16,
                "num_key_value_heads": 2,
            },
            vision={
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
            mrope_section=[16, 24, 24],
        ),
        auxiliary=AuxiliaryConfig(
            kwargs=davit(
                depths=[1, 1, 9, 1], dims=[256, 512, 1024, 2048], heads=[8, 16, 32, 64], window=12
            ),
            resize="dynamic",
            size=768,
            drop_path=0.1,
        ),
    )


SIZES: dict[str, Callable[[], ModelConfig]] = {
    "debug": debug,
    "tiny": tiny,
    "qwen2_5_vl_3b": qwen2_5_vl_3b,
}
"""Named sizes."""
