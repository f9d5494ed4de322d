"""A small random model of every VLM family."""

import torch
from transformers import PreTrainedTokenizerFast

from fo1_model.checkpoint import new_model
from fo1_model.config import ModelConfig, VLMConfig
from fo1_model.model import FO1Model
from fo1_model.processing import Processor
from fo1_model.sizes import debug
from fo1_model.vlms import build_family
from fo1_model.vlms.tiny_tokenizer import tiny_tokenizer
from tests.fo1_model.vlms.sentencepiece import llama_tokenizer

SPECIAL_TOKENS = {  # beyond the tiny tokenizer's, which are Qwen2.5-VL's
    "internvl": ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
    "llava_onevision": ["<image>", "<video>"],
    "smolvlm": [
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        "<row_1_col_1>",
        "<end_of_utterance>",
    ],
    "idefics3": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<fake_token_around_image>",
        "<image>",
        "<end_of_utterance>",
    ],
    "qwen3_5": ["<think>", "</think>"],
    "qwen3_5_moe": ["<think>", "</think>"],
    "glm4v": [
        *("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|image|>", "<|video|>"),
        *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    ],
}
SIDE = 60
"""Of the square towers; 60 px hold four patches of 14 px and a rest, as SigLIP's 384 px do."""
TILES = [(1, 1), (1, 2), (2, 1), (1, 3)]
"""Rows and columns that LLaVA-NeXT and LLaVA-OneVision may cut."""
HALF = [0.5, 0.5, 0.5]
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.3,
}
_MROPE = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
}
_HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 32,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.25,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_SQUARE_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
}


def small_tokenizer(family: str) -> PreTrainedTokenizerFast:
    if family in ("llava", "llava_next"):
        return llama_tokenizer(blanks="always" if family == "llava" else "first")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(SPECIAL_TOKENS.get(family, []), special_tokens=True)
    return tokenizer


def pinpoints(side: int) -> list[list[int]]:
    return [[rows * side, columns * side] for rows, columns in TILES]


def small_vlm(family: str, tokenizer: PreTrainedTokenizerFast, side: int = SIDE) -> VLMConfig:
    """The base's rows are exactly its tokenizer's, so that the new tokens lie behind them."""
    ids = tokenizer.get_vocab()
    text = {**_TEXT, "vocab_size": len(tokenizer)}
    qwen = {
        "image_token_id": ids.get("<|image_pad|>"),
        "video_token_id": ids.get("<|video_pad|>"),
        "vision_start_token_id": ids.get("<|vision_start|>"),
    }
    square = {**_SQUARE_VISION, "image_size": side}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 14,
    }
    resampled = {
        **vision,
        "patch_size": 16,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
    }
    # One layer more than deepstack has: what the last one gives at an image's place nobody reads.
    deep = {**text, **_MROPE, "head_dim": 16, "num_hidden_layers": 3}
    deepstack = {**resampled, "deepstack_visual_indexes": [0, 1]}
    clip = {"model_type": "clip_vision_model", "projection_dim": 32, **square}
    config = {
        "qwen2_vl": lambda: {
            **qwen,
            "text_config": {**text, **_MROPE},
            "vision_config": {
                **{k: v for k, v in vision.items() if k != "intermediate_size"},
                "embed_dim": 32,
                "mlp_ratio": 2,
            },
            "tie_word_embeddings": True,
        },
        "qwen2_5_vl": lambda: {
            **qwen,
            "text_config": {**text, **_MROPE},
            "vision_config": {**vision, "out_hidden_size": 32, "fullatt_block_indexes": [1]},
            "tie_word_embeddings": True,
        },
        "qwen3_vl": lambda: {
            **qwen,
            "text_config": deep,
            "vision_config": deepstack,
            "tie_word_embeddings": True,
        },
        "qwen3_vl_moe": lambda: {
            **qwen,
            "text_config": {**deep, **_EXPERTS},
            "vision_config": deepstack,
            "tie_word_embeddings": False,
        },
        "qwen3_5": lambda: {
            **qwen,
            "text_config": {**text, **_HYBRID},
            "vision_config": resampled,
            "tie_word_embeddings": True,
        },
        "qwen3_5_moe": lambda: {
            **qwen,
            "text_config": {
                **text,
                **_HYBRID,
                **_EXPERTS,
                "shared_expert_intermediate_size": 24,
            },
            "vision_config": resampled,
            "tie_word_embeddings": False,
        },
        "glm4v": lambda: {
            "image_token_id": ids["<|image|>"],
            "video_token_id": ids["<|video|>"],
            "image_start_token_id": ids["<|begin_of_image|>"],
            "image_end_token_id": ids["<|end_of_image|>"],
            "video_start_token_id": ids["<|begin_of_video|>"],
            "video_end_token_id": ids["<|end_of_video|>"],
            "text_config": {
                **text,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.5,
                    "mrope_section": [2, 1, 1],
                },
            },
            "vision_config": {**vision, "image_size": 56, "out_hidden_size": 32},
            "tie_word_embeddings": False,
        },
        "internvl": lambda: {
            "image_token_id": ids["<IMG_CONTEXT>"],
            "text_config": {"model_type": "qwen2", **text},
            "vision_config": {**square, "image_size": [side, side], "attention_bias": True},
            "tie_word_embeddings": False,
        },
        "llava_onevision": lambda: {
            "image_token_index": ids["<image>"],
            "video_token_index": ids["<video>"],
            "image_grid_pinpoints": pinpoints(side),
            "vision_aspect_ratio": "anyres_max_2",
            "text_config": {"model_type": "qwen2", **text},
            "vision_config": {
                "model_type": "siglip_vision_model",
                "vision_use_head": False,
                **square,
            },
            "tie_word_embeddings": False,
        },
        "llava": lambda: {
            "image_token_index": ids["<image>"],
            "text_config": {"model_type": "llama", **text},
            "vision_config": clip,
            "tie_word_embeddings": False,
        },
        "llava_next": lambda: {
            "image_token_index": ids["<image>"],
            "image_grid_pinpoints": pinpoints(side),
            "text_config": {"model_type": "mistral", **text},
            "vision_config": clip,
            "tie_word_embeddings": False,
        },
        "idefics3": lambda: {
            "image_token_id": ids["<image>"],
            "scale_factor": 2,
            "text_config": {"model_type": "llama", **text},
            "vision_config": square,
            "tie_word_embeddings": False,
        },
        "smolvlm": lambda: {
            "image_token_id": ids["<image>"],
            "scale_factor": 2,
            "text_config": {"model_type": "llama", **text},
            "vision_config": square,
            "tie_word_embeddings": True,
        },
    }[family]()
    return VLMConfig(family=family, config=config)


def small_model(family: str, side: int = SIDE) -> tuple[FO1Model, Processor]:
    """Weights lively enough that answers vary and every position of an image matters."""
    tokenizer = small_tokenizer(family)
    vlm = small_vlm(family, tokenizer, side)
    gap = build_family(vlm).image_gap
    debugged = debug()
    config = ModelConfig(
        vlm=vlm, auxiliary=debugged.auxiliary, region=debugged.region, image_gap=gap
    )
    model, processor = new_model(config, seed=0, tokenizer=tokenizer)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model, processor
