"""A small random model of every VLM family, and the base's own transformers processor beside it."""

import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import (
    LlavaOnevisionVideoProcessor,
)
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from fo1_model.checkpoint import new_model
from fo1_model.config import ModelConfig, VLMConfig
from fo1_model.model import FO1Model
from fo1_model.processing import Processor
from fo1_model.sizes import debug
from fo1_model.vlms import build_family
from fo1_model.vlms.tiny_tokenizer import tiny_tokenizer

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
}
SIDE = 60
"""Of the square towers; 60 px hold four patches of 14 px and a rest, as SigLIP's 384 px do."""
TILES = [(1, 1), (1, 2), (2, 1), (1, 3)]
"""Rows and columns that LLaVA-OneVision may cut."""
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
_SQUARE_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
}


def small_tokenizer(family: str) -> PreTrainedTokenizerFast:
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
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }
    square = {**_SQUARE_VISION, "image_size": side}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 14,
    }
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
            # One layer more than deepstack has: what the last one gives at an image's place nobody
            # reads.
            "text_config": {**text, **_MROPE, "head_dim": 16, "num_hidden_layers": 3},
            "vision_config": {
                **vision,
                "patch_size": 16,
                "out_hidden_size": 32,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0, 1],
            },
            "tie_word_embeddings": True,
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


def prompt(family: str, text: str, *, images: int = 1) -> str:
    """What the base's chat template makes of a user's turn, the place of an image one token."""
    return conversation(family, [("user", images, text)])


def conversation(family: str, turns: list[tuple[str, int, str]]) -> str:
    """What the base's published chat template makes of turns (role, images before its text, text).

    The answer is opened. ``image`` is what it writes for one image, ``text`` what comes before a
    text behind ``n`` images.
    """
    if family == "smolvlm":
        lines = [
            f"{role.capitalize()}:{'<image>' * n or ' '}{text}<end_of_utterance>\n"
            for role, n, text in turns
        ]
        return f"<|im_start|>{''.join(lines)}Assistant:"
    if family == "llava_onevision":
        lines = [f"<|im_start|>{role} {'<image>' * n}\n{text}<|im_end|>" for role, n, text in turns]
        return f"{''.join(lines)}<|im_start|>assistant\n"
    image = {"internvl": "<IMG_CONTEXT>\n"}.get(
        family, "<|vision_start|><|image_pad|><|vision_end|>"
    )
    if family in ("qwen2_vl", "qwen2_5_vl") and turns[0][0] != "system":
        turns = [("system", 0, "You are a helpful assistant."), *turns]
    lines = [f"<|im_start|>{role}\n{image * n}{text}<|im_end|>\n" for role, n, text in turns]
    return f"{''.join(lines)}<|im_start|>assistant\n"


def base_inputs(family: str, text: str, image=None) -> dict[str, torch.Tensor]:
    """What the base's own processor gives the base model, in the settings that the family
    documents.

    image: one, None, or a list of those of one conversation.
    """
    tokenizer = small_tokenizer(family)
    if family == "smolvlm":
        return _smolvlm_inputs(tokenizer, text, image)
    if family.startswith("qwen"):
        names = {
            "qwen2_vl": Qwen2VLProcessor,
            "qwen2_5_vl": Qwen2_5_VLProcessor,
            "qwen3_vl": Qwen3VLProcessor,
        }
        three = family == "qwen3_vl"
        images = Qwen2VLImageProcessorPil(
            size={"shortest_edge": 65536, "longest_edge": 16777216}
            if three
            else {"shortest_edge": 3136, "longest_edge": 12845056},
            **({"patch_size": 16, "image_mean": HALF, "image_std": HALF} if three else {}),
        )
        videos = Qwen3VLVideoProcessor() if three else Qwen2VLVideoProcessor()
        processor = names[family](images, tokenizer, videos)
        inputs = processor(
            images=image, text=[text], return_tensors="pt", return_mm_token_type_ids=True
        )
    elif family == "internvl":
        for name, token in {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }.items():
            setattr(tokenizer, name, token)
            setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
        images = GotOcr2ImageProcessorPil(
            size={"height": SIDE, "width": SIDE},
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        )
        processor = InternVLProcessor(
            images, tokenizer, InternVLVideoProcessor(), image_seq_length=4
        )
        inputs = processor(images=image, text=[text], return_tensors="pt", crop_to_patches=False)
    else:
        images = LlavaOnevisionImageProcessorPil(
            size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=pinpoints(SIDE),
            image_mean=HALF,
            image_std=HALF,
        )
        processor = LlavaOnevisionProcessor(
            images,
            tokenizer,
            LlavaOnevisionVideoProcessor(),
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_2",
        )
        inputs = processor(
            images=[image] if isinstance(image, list) else image, text=[text], return_tensors="pt"
        )
    return dict(inputs)


def _smolvlm_inputs(tokenizer, text, image):
    """SmolVLMProcessor itself needs a package (num2words) for videos; these are its two steps for
    images."""
    inputs = {}
    if image is not None:
        images = SmolVLMImageProcessorPil(
            size={"longest_edge": 4 * SIDE},
            max_image_size={"longest_edge": SIDE},
            do_image_splitting=False,
        )
        listed = image if isinstance(image, list) else [image]
        inputs = dict(images([listed], return_tensors="pt", return_row_col_info=True))
        tile = get_image_prompt_string(
            inputs.pop("rows")[0][0],
            inputs.pop("cols")[0][0],
            4,
            fake_token_around_image="<fake_token_around_image>",
            image_token="<image>",
            global_image_token="<global-img>",
        )
        text = text.replace("<image>", tile)
    return {**tokenizer([text], return_tensors="pt", return_token_type_ids=False), **inputs}
