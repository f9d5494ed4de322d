"""A folder as the release has it, random weights: names, shapes and files written down here.

Nothing of our converter is used, so that what it reads and writes back can be held against it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

REGIONS = 100
IMAGE_SIDE_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *IMAGE_SIDE_TOKENS, "<|video_pad|>")
REGION_LANGUAGE = (
    *(f"<region{index}>" for index in range(REGIONS)),
    "<ground>",
    "</ground>",
    "<objects>",
    "</objects>",
)
MERGES = (("t", "h"), ("th", "e"), ("i", "n"), ("o", "b"))


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Sizes of a released model."""

    hidden: int = 2048
    mlp: int = 11008
    heads: int = 16
    key_value_heads: int = 2
    text_layers: int = 36
    vision: int = 1280
    vision_mlp: int = 3420
    vision_heads: int = 16
    vision_layers: int = 32
    full_attention: tuple[int, ...] = (7, 15, 23, 31)
    davit: tuple[int, ...] = (256, 512, 1024, 2048)
    davit_depths: tuple[int, ...] = (1, 1, 9, 1)
    pyramid: int = 512
    mrope: tuple[int, ...] = (16, 24, 24)
    rows: int = 400
    """Rows of the embedding; the test vocabulary needs no more."""


SMALL = Widths(
    hidden=32,
    mlp=64,
    heads=2,
    key_value_heads=1,
    text_layers=2,
    vision=32,
    vision_mlp=48,
    vision_heads=2,
    vision_layers=2,
    full_attention=(1,),
    davit=(32, 64, 128, 256),
    davit_depths=(1, 1, 1, 1),
    pyramid=16,
    mrope=(2, 3, 3),
)
FULL_WIDTH = Widths(text_layers=2, vision_layers=2, full_attention=(1,), davit_depths=(1, 1, 1, 1))
"""The 3B one's widths in few layers: 0.43 billion parameters."""


def shapes_of(widths: Widths) -> dict[str, tuple[int, ...]]:
    """Released name -> shape."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, width: int, *, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, width)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    hidden, heads = widths.hidden, widths.heads
    narrow = widths.key_value_heads * hidden // heads
    shapes["model.embed_tokens.weight"] = (widths.rows, hidden)
    shapes["model.norm.weight"] = (hidden,)
    for layer in range(widths.text_layers):
        at = f"model.layers.{layer}."
        shapes[f"{at}input_layernorm.weight"] = shapes[f"{at}post_attention_layernorm.weight"] = (
            hidden,
        )
        for part, out in (("q", hidden), ("k", narrow), ("v", narrow)):
            linear(f"{at}self_attn.{part}_proj", out, hidden)
        linear(f"{at}self_attn.o_proj", hidden, hidden, bias=False)
        for part in ("gate", "up"):
            linear(f"{at}mlp.{part}_proj", widths.mlp, hidden, bias=False)
        linear(f"{at}mlp.down_proj", hidden, widths.mlp, bias=False)

    tower, width = "model.vision_tower.image_tower.", widths.vision
    shapes[f"{tower}patch_embed.proj.weight"] = (width, 3, 2, 14, 14)
    for layer in range(widths.vision_layers):
        at = f"{tower}blocks.{layer}."
        shapes[f"{at}norm1.weight"] = shapes[f"{at}norm2.weight"] = (width,)
        linear(f"{at}attn.qkv", 3 * width, width)
        linear(f"{at}attn.proj", width, width)
        for part in ("gate", "up"):
            linear(f"{at}mlp.{part}_proj", widths.vision_mlp, width)
        linear(f"{at}mlp.down_proj", width, widths.vision_mlp)
    shapes[f"{tower}merger.ln_q.weight"] = (width,)
    linear(f"{tower}merger.mlp.0", 4 * width, 4 * width)
    linear(f"{tower}merger.mlp.2", hidden, 4 * width)

    tower = "model.vision_tower_aux.image_tower."
    for stage, width in enumerate(widths.davit):
        before = widths.davit[stage - 1] if stage else 3
        kernel = 3 if stage else 7
        shapes[f"{tower}convs.{stage}.proj.weight"] = (width, before, kernel, kernel)
        shapes[f"{tower}convs.{stage}.proj.bias"] = (width,)
        norm(f"{tower}convs.{stage}.norm", before if stage else width)
        for block in range(widths.davit_depths[stage]):
            for kind, attention in (("spatial", "window"), ("channel", "channel")):
                at = f"{tower}blocks.{stage}.{block}.{kind}_block."
                for number in (1, 2):
                    shapes[f"{at}conv{number}.fn.dw.weight"] = (width, 1, 3, 3)
                    shapes[f"{at}conv{number}.fn.dw.bias"] = (width,)
                norm(f"{at}{attention}_attn.norm", width)
                linear(f"{at}{attention}_attn.fn.qkv", 3 * width, width)
                linear(f"{at}{attention}_attn.fn.proj", width, width)
                norm(f"{at}ffn.norm", width)
                linear(f"{at}ffn.fn.net.fc1", 4 * width, width)
                linear(f"{at}ffn.fn.net.fc2", width, 4 * width)

    pyramid, out, width = "model.object_vp_extractor.simple_fpn.", widths.pyramid, widths.vision
    for name, into, half in (
        ("simfp_1.0", width, width // 2),
        ("simfp_1.3", width // 2, width // 4),
        ("simfp_2.0", width, width // 2),
    ):
        shapes[f"{pyramid}{name}.weight"] = (into, half, 2, 2)
        shapes[f"{pyramid}{name}.bias"] = (half,)
    norm(f"{pyramid}simfp_1.1", width // 2)
    for level, first, into in (
        (1, 4, width // 4),
        (2, 1, width // 2),
        (3, 0, width),
        (4, 1, width),
    ):
        for number, channels, kernel in ((first, into, 1), (first + 1, out, 3)):
            shapes[f"{pyramid}simfp_{level}.{number}.weight"] = (out, channels, kernel, kernel)
            norm(f"{pyramid}simfp_{level}.{number}.norm", out)
    linear("model.mm_projector_aux.0", hidden, sum(widths.davit) + 4 * out)
    linear("model.mm_projector_aux.2", hidden, hidden)
    return shapes


def config_of(widths: Widths, ids: dict[str, int]) -> dict[str, object]:
    """The flat config, keys that nothing reads included, in no order."""
    return {
        "_name_or_path": "work_dirs/somewhere/stage2",
        "architectures": ["OmChatQwen25VLForCausalLM"],
        "vocab_size": widths.rows,
        "model_type": "omchat_qwen2_5_vl",
        "aux_image_aspect_ratio": "dynamic",
        "aux_image_size": 1024,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "hidden_size": widths.hidden,
        "intermediate_size": widths.mlp,
        "num_hidden_layers": widths.text_layers,
        "num_attention_heads": widths.heads,
        "num_key_value_heads": widths.key_value_heads,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"mrope_section": list(widths.mrope), "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "image_token_id": ids["<|image_pad|>"],
        "mm_apply_position_embedding": True,
        "mm_hidden_size": widths.hidden,
        "mm_num_region_tokens": REGIONS,
        "mm_of_theirs": {"nobody": ["knows", 1.5, None, "é"]},
        "mm_pos_embedding_strategy": "bbox_based",
        "mm_projector_aux_type": "mlp2x_gelu",
        "mm_projector_type": "identity",
        "mm_region_feature_combination": "concat",
        "mm_region_hidden_size": sum(widths.davit) + 4 * widths.pyramid,
        "mm_roi_output_size": 7,
        "mm_use_region_index_token": True,
        "mm_use_simpleFPN_for_vt": True,
        "mm_use_vision_tower_region_feature": True,
        "mm_vision_tower": "resources/Qwen2.5-VL-3B-Instruct-Vision_Tower",
        "mm_vision_tower_aux": "resources/davit-large.pth",
        "tokenizer_model_max_length": 8192,
        "tokenizer_padding_side": "right",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.1",
        "vision_config": {
            "depth": widths.vision_layers,
            "fullatt_block_indexes": list(widths.full_attention),
            "hidden_size": widths.vision,
            "intermediate_size": widths.vision_mlp,
            "model_type": "qwen2_5_vl",
            "num_heads": widths.vision_heads,
            "out_hidden_size": widths.hidden,
            "tokens_per_second": 2,
            "window_size": 112,
        },
    }


def byte_symbols() -> list[str]:
    """The 256 symbols of byte-level vocabularies (GPT-2's table): the byte's own or one beyond."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    beyond = {byte: chr(256 + number) for number, byte in enumerate(hidden)}
    return [beyond.get(byte, chr(byte)) for byte in range(256)]


def tokenizer_files() -> dict[str, str]:
    """The slow tokenizer's files; ids follow the order: bytes, merges, special ones, regions."""
    words = [*byte_symbols(), *("".join(pair) for pair in MERGES)]
    added = {
        token: len(words) + number for number, token in enumerate((*SPECIAL, *REGION_LANGUAGE))
    }
    decoder = {
        str(index): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token in SPECIAL,
        }
        for token, index in added.items()
    }
    template = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% endfor %}"
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": list(SPECIAL[1:]),
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 8192,
        "pad_token": "<|endoftext|>",
        "padding_side": "right",
        "tokenizer_class": "Qwen2Tokenizer",
    }
    return {
        "vocab.json": json.dumps({word: index for index, word in enumerate(words)}),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES),
        "added_tokens.json": json.dumps(added, indent=2),
        "special_tokens_map.json": json.dumps({"eos_token": "<|im_end|>"}, indent=4),
        "tokenizer_config.json": json.dumps(settings, indent=2),
        "chat_template.json": json.dumps({"chat_template": template}),
    }


def write_released(
    folder: Path, widths: Widths = SMALL, *, seed: int = 0, num_files: int = 2
) -> dict[str, int]:
    """Write such a folder; return the ids of its added tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = tokenizer_files()
    ids = json.loads(texts["added_tokens.json"])
    image = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "max_pixels": 12845056,
        "merge_size": 2,
    }
    texts |= {
        "config.json": json.dumps(config_of(widths, ids), indent=1, ensure_ascii=False),
        "generation_config.json": json.dumps({"repetition_penalty": 1.05, "do_sample": True}),
        "preprocessor_config.json": json.dumps(image, indent=2),
        "README.md": "# Released\n\nnot ours: ß\n",
        "LICENSE": "theirs\n",
        ".gitattributes": "*.safetensors filter=lfs\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes_of(widths)
    # In the order of the modules, unlike ours, and cut anywhere.
    files: dict[str, list[str]] = {}
    for number, name in enumerate(shapes):
        part = 1 + number * num_files // len(shapes)
        files.setdefault(f"model-{part:05d}-of-{num_files:05d}.safetensors", []).append(name)
    total = 0
    for file, names in files.items():
        tensors = {}
        for name in names:
            tensor = torch.randn(shapes[name], generator=generator, dtype=torch.bfloat16) * 0.05
            # Norms near 1, or nothing comes through full widths.
            tensors[name] = tensor + 1 if "norm" in name and name.endswith(".weight") else tensor
            total += tensor.nbytes
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return ids
