"""The bases' own transformers processors, in the settings that the families document."""

import torch
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.glm4v.processing_glm4v import Glm4vProcessor
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
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

from tests.fo1_model.small_families import HALF, SIDE, pinpoints, small_tokenizer


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
        }
        three = family.startswith("qwen3")
        images = Qwen2VLImageProcessorPil(
            size={"shortest_edge": 65536, "longest_edge": 16777216}
            if three
            else {"shortest_edge": 3136, "longest_edge": 12845056},
            **({"patch_size": 16, "image_mean": HALF, "image_std": HALF} if three else {}),
        )
        videos = Qwen3VLVideoProcessor() if three else Qwen2VLVideoProcessor()
        # Qwen3.5 and the mixtures of experts come with Qwen3-VL's
        processor = names.get(family, Qwen3VLProcessor)(images, tokenizer, videos)
        inputs = processor(
            images=image, text=[text], return_tensors="pt", return_mm_token_type_ids=True
        )
    elif family == "glm4v":
        images = Glm4vImageProcessorPil(size={"shortest_edge": 12544, "longest_edge": 9633792})
        processor = Glm4vProcessor(images, tokenizer, Glm4vVideoProcessor())
        inputs = processor(
            images=image, text=[text], return_tensors="pt", return_mm_token_type_ids=True
        )
    elif family == "idefics3":
        images = Idefics3ImageProcessorPil(
            size={"longest_edge": 4 * SIDE},
            max_image_size={"longest_edge": SIDE},
            do_image_splitting=False,
        )
        processor = Idefics3Processor(images, tokenizer, image_seq_len=4)
        listed = None if image is None else [image if isinstance(image, list) else [image]]
        inputs = processor(images=listed, text=[text], return_tensors="pt")
    elif family in ("llava", "llava_next"):
        inputs = _llava_inputs(family, tokenizer, text, image)
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


def _llava_inputs(family, tokenizer, text, image):
    """Tiles of zeros that fill up LLaVA-NeXT's batch are left out, as its model leaves them out."""
    settings = {
        "tokenizer": tokenizer,
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    if family == "llava":
        images = LlavaImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
        return LlavaProcessor(images, **settings)(images=image, text=[text], return_tensors="pt")
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=pinpoints(SIDE),
    )
    inputs = LlavaNextProcessor(images, **settings)(images=image, text=[text], return_tensors="pt")
    if image is not None:
        counts = [
            image_size_to_num_patches(size, pinpoints(SIDE), SIDE) for size in inputs["image_sizes"]
        ]
        tiles = zip(inputs["pixel_values"], counts, strict=True)
        inputs["pixel_values"] = torch.cat([each[:count] for each, count in tiles])
    return inputs
