"""A small random Hugging Face detector of each family with its processor, and shared helpers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers.models.lw_detr.configuration_lw_detr import LwDetrViTConfig
from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

from fo1_model.detectors import Detections, Detector, DetectorInput, Prepared, Selection
from fo1_model.detectors.postprocess import select

EVERYTHING = Selection(nms_iou=None, max_boxes=1000)
SIZES = [(128, 96), (50, 128), (128, 96), (97, 61)]  # width, height; two of one shape
WORDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
WORDS |= {"object": 200, "red": 201, "cat": 202, "dog": 203}

Family = Callable[[], tuple[Any, Any]]


def resnet(num_maps: int) -> hf.ResNetConfig:
    return hf.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=[f"stage{stage}" for stage in range(5 - num_maps, 5)],
    )


def hgnet() -> hf.HGNetV2Config:
    return hf.HGNetV2Config(
        stem_channels=[3, 8, 8],
        hidden_sizes=[8, 16, 24, 32],
        stage_in_channels=[8, 8, 16, 24],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 16, 24, 32],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )


def rt_resnet() -> hf.RTDetrResNetConfig:
    return hf.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


HEADS = {
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 20,
}
DETR = HEADS | {"d_model": 64, "num_labels": 5, "use_timm_backbone": False, "backbone": None}
RT_DETR = HEADS | {
    "d_model": 32,
    "num_labels": 5,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [16, 24, 32],
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 0,
    # As many as positions: with fewer, rounding would change which become queries.
    "num_queries": 84,
}
LW_DETR = {
    "d_model": 32,
    "decoder_ffn_dim": 32,
    "decoder_layers": 1,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "num_queries": 16,
    "num_labels": 5,
    "group_detr": 2,
}
EDGES = {"shortest_edge": 64, "longest_edge": 96}


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _detr() -> tuple[Any, Any]:
    return hf.DetrConfig(backbone_config=resnet(1), **DETR), hf.DetrImageProcessor(size=EDGES)


def _conditional() -> tuple[Any, Any]:
    config = hf.ConditionalDetrConfig(backbone_config=resnet(1), **DETR)
    return config, hf.ConditionalDetrImageProcessor(size=EDGES)


def _dab() -> tuple[Any, Any]:
    values = {key: value for key, value in DETR.items() if key != "d_model"}
    config = hf.DabDetrConfig(backbone_config=resnet(1), hidden_size=32, **values)
    return config, hf.ConditionalDetrImageProcessor(size=EDGES)


def _deformable() -> tuple[Any, Any]:
    config = hf.DeformableDetrConfig(backbone_config=resnet(3), **DETR)
    return config, hf.DeformableDetrImageProcessor(size=EDGES)


def _rt_detr() -> tuple[Any, Any]:
    config = hf.RTDetrConfig(backbone_config=rt_resnet(), **RT_DETR)
    return config, hf.RTDetrImageProcessor(size=square(64))


def _rt_detr_v2() -> tuple[Any, Any]:
    config = hf.RTDetrV2Config(backbone_config=rt_resnet(), **RT_DETR)
    return config, hf.RTDetrImageProcessor(size=square(64))


def _d_fine() -> tuple[Any, Any]:
    config = hf.DFineConfig(backbone_config=hgnet(), **RT_DETR)
    return config, hf.RTDetrImageProcessor(size=square(64))


def _deim_v2() -> tuple[Any, Any]:
    config = hf.Deimv2Config(backbone_config=hgnet(), **RT_DETR)
    return config, hf.RTDetrImageProcessor(size=square(64))


def _lw_detr() -> tuple[Any, Any]:
    backbone = LwDetrViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        pretrain_image_size=64,
        window_block_indices=[0],
        out_indices=[1, 2],
        num_windows=4,
    )
    config = hf.LwDetrConfig(backbone_config=backbone, projector_scale_factors=[1.0], **LW_DETR)
    return config, hf.DeformableDetrImageProcessor(size=square(64))


def _rf_detr() -> tuple[Any, Any]:
    backbone = RfDetrDinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        out_indices=[1, 2],
        num_windows=2,
    )
    return hf.RfDetrConfig(backbone_config=backbone, **LW_DETR), hf.RfDetrImageProcessor(
        size=square(56)
    )


def _yolos() -> tuple[Any, Any]:
    config = hf.YolosConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[64, 96],
        num_detection_tokens=20,
        num_labels=5,
    )
    return config, hf.YolosImageProcessor(size=EDGES)


CLOSED_SET: dict[str, Family] = {
    "detr": _detr,
    "conditional_detr": _conditional,
    "dab_detr": _dab,
    "deformable_detr": _deformable,
    "rt_detr": _rt_detr,
    "rt_detr_v2": _rt_detr_v2,
    "d_fine": _d_fine,
    "deim_v2": _deim_v2,
    "lw_detr": _lw_detr,
    "rf_detr": _rf_detr,
    "yolos": _yolos,
}


def tokenizer(longest: int) -> hf.PreTrainedTokenizerFast:
    """One token a word.

    Ids of the punctuation are BERT's: Grounding DINO's code knows them by number.
    """
    fillers = {f"word{index}": index for index in range(1030) if index not in WORDS.values()}
    words = Tokenizer(models.WordLevel(WORDS | fillers, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 101), ("[SEP]", 102)]
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=longest,
    )


TEXT = {
    "vocab_size": 1030,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def _grounding_dino(config: Any) -> tuple[Any, Any]:
    text = hf.BertConfig(hidden_size=32, max_position_embeddings=64, **TEXT)
    made = config(backbone_config=resnet(3), text_config=text, d_model=64, max_text_len=24, **HEADS)
    images = hf.GroundingDinoImageProcessor(size=EDGES)
    return made, hf.GroundingDinoProcessor(images, tokenizer(24))


def _omdet_turbo() -> tuple[Any, Any]:
    text = hf.CLIPTextConfig(
        hidden_size=48, max_position_embeddings=77, projection_dim=48, eos_token_id=102, **TEXT
    )
    config = hf.OmDetTurboConfig(
        backbone_config=resnet(3),
        text_config=text,
        apply_layernorm_after_vision_backbone=False,
        text_projection_in_dim=48,
        text_projection_out_dim=48,
        class_embed_dim=48,
        task_encoder_hidden_dim=32,
        num_queries=20,
        d_model=32,
        decoder_hidden_dim=32,
        vision_features_channels=[32, 32, 32],
        encoder_in_channels=[16, 24, 32],
        encoder_attention_heads=2,
        encoder_dim_feedforward=32,
        decoder_num_heads=2,
        decoder_num_layers=2,
        decoder_dim_feedforward=32,
        image_size=64,
    )
    return config, hf.OmDetTurboProcessor(hf.DetrImageProcessor(size=square(64)), tokenizer(77))


def _owl(config: Any, images: Any, processor: Any) -> tuple[Any, Any]:
    text = {"hidden_size": 32, "eos_token_id": 102, "bos_token_id": 101} | TEXT
    layers = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    vision = layers | {"image_size": 64, "patch_size": 16}
    made = config(text_config=text, vision_config=vision, projection_dim=32)
    return made, processor(images(size=square(64)), tokenizer(16))


TEXT_PROMPTED: dict[str, Family] = {
    "grounding_dino": lambda: _grounding_dino(hf.GroundingDinoConfig),
    "mm_grounding_dino": lambda: _grounding_dino(hf.MMGroundingDinoConfig),
    "omdet_turbo": _omdet_turbo,
    "owl_vit": lambda: _owl(hf.OwlViTConfig, hf.OwlViTImageProcessor, hf.OwlViTProcessor),
    "owl_v2": lambda: _owl(hf.Owlv2Config, hf.Owlv2ImageProcessor, hf.Owlv2Processor),
}


def saved(auto: Any, family: Family, folder: Path) -> Path:
    """Write a family's processor and model, its weights lively enough for boxes to differ."""
    config, processor = family()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith(("box_head.", "class_head.logit")):
                    # OWL's, drawn with a spread of 1: all boxes would reach from edge to edge, all
                    # scores be 0 or 1.
                    parameter.mul_(0.15)
                else:
                    parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Blocks of random colour, so that a scaled image is still no grey."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def prepared(detector: Detector, sizes: Sequence[tuple[int, int]] = SIZES) -> list[Prepared]:
    """Different images of these sizes as the detector wants them."""
    return [
        detector.prepare(DetectorInput(image_id=str(seed), image=noise_image(*size, seed)))
        for seed, size in enumerate(sizes)
    ]


def once_a_box(result: dict[str, torch.Tensor], width: int, height: int) -> Detections:
    """A library's detections, best first, each box with its best score only, through `select`."""
    best: dict[tuple[float, ...], float] = {}
    for box, score in zip(result["boxes"].tolist(), result["scores"].tolist(), strict=True):
        best[tuple(box)] = max(score, best.get(tuple(box), 0.0))
    boxes, scores = np.array(list(best)), np.array(list(best.values()))
    return select(boxes, scores, width=width, height=height, selection=EVERYTHING)


def assert_near(
    found: Detections, expected: Detections, atol_px: float, share: float = 0.75
) -> None:
    """A share of the expected boxes have one within `atol_px` on every side, whatever the order."""
    distance = np.abs(found.boxes[None] - expected.boxes[:, None]).max(-1).min(1)
    assert np.quantile(distance, share) < atol_px
