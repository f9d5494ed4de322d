"""A released checkpoint's folder, in and out: weights, config and tokenizer."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2Tokenizer

from fo1_model import grammar
from fo1_model.checkpoint import read_fast_tokenizer, write_tokenizer
from fo1_model.config import is_released
from fo1_model.errors import SettingError
from fo1_model.model import FO1Model
from fo1_model.pretrained.config import FO1Config
from fo1_model.processing import Processor
from fo1_model.release.configs import MODEL_TYPE, bare_layers, config_of_release
from fo1_model.release.flat_config import release_of_config
from fo1_model.release.kept_files import (
    as_it_came,
    files_of_weights,
    index_as_it_came,
    read_kept,
    tokenizer_files,
)
from fo1_model.release.names import (
    EMBEDDING,
    HEAD,
    NEW_ROWS,
    OWN_EMBEDDING,
    OWN_HEAD,
    released_name,
)
from fo1_model.weights import (
    INDEX,
    MAX_FILE_BYTES,
    StoredWeights,
    load_weights,
    open_weights,
    read_json,
    uninitialised,
    weights_of,
    write_json,
    write_weights,
)


def load_release(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    shortest_edge: int | None = None,
) -> tuple[FO1Model, Processor]:
    """Return the model of a released folder, in eval mode, and its processor.

    The rows of the region language's tokens are copied out of the embedding (and an untied head)
    into our separate parameters, which shadow them: so the logits are the checkpoint's, and stage 1
    trains the copies alone.

    Args:
        path: The folder.
        dtype: Type of the weights; None keeps each as it is stored.
        device: Where the model is put.
        shortest_edge: ``ModelConfig.shortest_edge``, which no released config says.

    Raises:
        SettingError: For a folder that is none, a mode that the release cannot run, tensors that
            are missing, left over or of another shape, tokens that the tokenizer lacks.
    """
    folder = Path(path)
    flat = _read_config(folder)
    stored = open_weights(folder)
    shapes = _without_tied_head(flat, stored)
    processor = _processor(folder, flat, shapes, shortest_edge)
    with uninitialised():
        model = FO1Model(FO1Config.of(processor.config, processor.token_ids))
    own = weights_of(model)
    bare = bare_layers(flat)
    by_released = {released_name(name, bare): own[name] for name in own if name not in NEW_ROWS}
    tensors = ((name, tensor) for name, tensor in stored.tensors() if name in shapes)
    load_weights(by_released, shapes, tensors, what=str(folder), dtype=dtype, device=device)
    # Copies, so that training them leaves the imported matrix as it is.
    ids = torch.tensor(processor.token_ids.new, device=device)
    for name, matrix in NEW_ROWS.items():
        if name in own:
            own[name].data = own[matrix].data[ids].clone()
    model.use_stops(processor)
    return model.to(device=device).eval(), processor


def load_release_processor(path: str | Path) -> Processor:
    """Return the processor of a released folder alone; errors as for `load_release`."""
    folder = Path(path)
    flat = _read_config(folder)
    return _processor(folder, flat, _without_tied_head(flat, open_weights(folder)))


def export_release(
    model: FO1Model,
    processor: Processor,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write a model as the release's code reads it: tensor names, flat config, slow tokenizer.

    New vocabulary rows are merged into the embedding, and into an untied head. An imported model
    comes out as it went in, to the bit: tensors in the same files, the config as long as it says
    what the model is, every other file of text (`kept_files`). Only a head that repeats a tied
    embedding is left out.

    Args:
        model: The model, on any device.
        processor: Its processor.
        path: Folder to write.
        dtype: Type of the tensors; None keeps each as it is.
        max_file_bytes: Size in bytes above which weights go into several files.

    Raises:
        SettingError: For a model that the release has no form for.
    """
    folder = Path(path)
    own = {name: value for name, value in weights_of(model).items() if name not in NEW_ROWS}
    rows = {OWN_EMBEDDING: model.new_rows, OWN_HEAD: model.new_output_rows}

    def whole(name: str) -> Tensor:
        extra = rows.get(name)
        value = own[name] if extra is None else extra.merged(own[name])
        return value.to(dtype or value.dtype)

    shapes = {name: tuple(value.shape) for name, value in own.items()}
    shapes |= {
        name: (extra.num_rows, shapes[name][1])
        for name, extra in rows.items()
        if name in own and extra is not None
    }
    # Shapes as they will be written, because the config is checked by reading it back.
    vocabulary = processor.tokenizer.get_vocab()
    flat = release_of_config(
        model.model_config,
        {released_name(name): shape for name, shape in shapes.items()},
        vocabulary,
    )
    bare = bare_layers(flat)
    kept = processor.release_files
    tensors = {released_name(name, bare): partial(whole, name) for name in own}
    files = files_of_weights(kept, tensors)
    write_weights(
        folder,
        tensors,
        {
            released_name(name, bare): math.prod(shapes[name]) * (dtype or value.dtype).itemsize
            for name, value in own.items()
        },
        max_file_bytes=max_file_bytes,
        files=files,
    )
    if files and (content := index_as_it_came(kept, read_json(folder / INDEX))) is not None:
        (folder / INDEX).write_bytes(content)
    if (content := as_it_came(kept, "config.json", flat)) is not None:
        (folder / "config.json").write_bytes(content)
    else:
        write_json(folder / "config.json", flat)
    if kept:
        _write_kept_files(processor, folder)
    else:
        _write_tokenizer(processor.tokenizer, folder)
        _write_image_settings(processor, folder)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a folder.

    It is in ``tokenizer.json``, the slow one's files, or ``tokens.json``. The last is of folders
    made for comparison: it lists the special tokens' ids, and text is bytes.

    Raises:
        SettingError: When there is none.
    """
    if (folder / "tokenizer.json").is_file():
        return read_fast_tokenizer(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return Qwen2Tokenizer.from_pretrained(str(folder))
    if (folder / "tokens.json").is_file():
        return _byte_tokenizer(read_json(folder / "tokens.json"))
    raise SettingError(
        f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt"
    )


def _byte_tokenizer(tokens: Mapping[str, int]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes and some tokens.

    Bytes have ids 0 to 255 in the order of every byte-level vocabulary, ``tokens`` have theirs.
    """
    symbols = {
        symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    tokenizer = Tokenizer(models.BPE(vocab={**symbols, **tokens}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokens]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def _write_kept_files(processor: Processor, folder: Path) -> None:
    """Write what lies beside config and weights as it came; a tokenizer that has grown anew."""
    kept = {
        name: content
        for name, content in processor.release_files.items()
        if name not in ("config.json", INDEX)
    }
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    if read_tokenizer(folder).get_vocab() != processor.tokenizer.get_vocab():
        for name in tokenizer_files(kept):
            (folder / name).unlink()
        _write_tokenizer(processor.tokenizer, folder)


def _write_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the slow tokenizer that the release's code asks for, beside the fast one."""
    write_tokenizer(tokenizer, folder)
    tokenizer.backend_tokenizer.model.save(str(folder))
    settings = read_json(folder / "tokenizer_config.json")
    settings["tokenizer_class"] = "Qwen2Tokenizer"
    settings["added_tokens_decoder"] = {
        str(index): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for index, token in tokenizer.added_tokens_decoder.items()
    }
    write_json(folder / "tokenizer_config.json", settings)


def _write_image_settings(processor: Processor, folder: Path) -> None:
    """Write the settings of the image processor that the release's code makes."""
    vision: Any = Qwen2_5_VLConfig(**processor.config.vlm.config).vision_config
    image = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    write_json(folder / "preprocessor_config.json", image)


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the flat config of a folder that is a released checkpoint."""
    path = folder / "config.json"
    if not path.is_file():
        raise SettingError(f"{folder} is not a released checkpoint: it has no config.json")
    flat = read_json(path)
    if not is_released(flat):
        raise SettingError(
            f"{folder} is not a released checkpoint: its config.json has model_type "
            f"{flat.get('model_type')!r} and no mm_vision_tower_aux; the release has {MODEL_TYPE!r}"
        )
    return flat


def _processor(
    folder: Path,
    flat: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    shortest_edge: int | None = None,
) -> Processor:
    """Return the processor, whose config is the model's too."""
    tokenizer = read_tokenizer(folder)
    config = config_of_release(flat, shapes, _count_region_tokens(tokenizer, folder))
    if shortest_edge is not None:
        config = replace(config, shortest_edge=shortest_edge)
    processor = Processor(config, tokenizer)
    processor.release_files = read_kept(folder)
    rows = shapes[EMBEDDING][0]
    if max(processor.token_ids.new) >= rows:
        raise SettingError(f"{folder}: the tokenizer goes beyond the {rows} rows of {EMBEDDING}")
    return processor


def _without_tied_head(
    flat: Mapping[str, Any], stored: StoredWeights
) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the weights, less a head that only repeats a tied embedding."""
    shapes = dict(stored.shapes)
    if HEAD in shapes and flat.get("tie_word_embeddings", False):
        if not torch.equal(stored.read(HEAD), stored.read(EMBEDDING)):
            raise SettingError(
                f"{stored.folder}: tie_word_embeddings=True, but {HEAD} differs from {EMBEDDING}; "
                "set the key to false to use it"
            )
        del shapes[HEAD]
    return shapes


def _count_region_tokens(tokenizer: PreTrainedTokenizerFast, folder: Path) -> int:
    """Return how many ``<regionN>`` the vocabulary has, from 0 on without a gap."""
    vocabulary = tokenizer.get_vocab()
    count = 0
    while grammar.region_token(count) in vocabulary:
        count += 1
    if missing := [token for token in grammar.new_tokens(max(count, 1)) if token not in vocabulary]:
        raise SettingError(f"{folder}: the tokenizer lacks {', '.join(missing)}")
    return count
