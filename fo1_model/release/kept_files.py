"""Files of a released folder that no code of ours writes, kept for the way back, byte for byte.

The slow tokenizer's files, chat template, generation and image settings, licence and model card
travel with the processor, and lie in the subfolder ``release`` of our own folder. An export gives
them back instead of writing its own; the tokenizer's only while the tokenizer has not changed.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fo1_model.weights import INDEX

SUBFOLDER = "release"
"""Where the files lie in a model folder of ours."""
_KINDS = frozenset({"", ".json", ".txt", ".jinja", ".md", ".model"})
"""Endings of files that are kept: text, and a SentencePiece model. Weights are not."""
_TOKENIZER = frozenset(
    {
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "merges.txt",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "tokens.json",
        "vocab.json",
    }
)


def read_kept(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder that are kept, name -> content; none where it is not there.

    Subfolders stay behind.
    """
    if not folder.is_dir():
        return {}
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and _is_kept(file)]
    return {file.name: file.read_bytes() for file in files}


def write_kept(files: Mapping[str, bytes], folder: Path) -> None:
    """Write kept files into a folder; those of an earlier save that are not among them go."""
    if folder.is_dir():
        for old in folder.iterdir():
            if old.is_file() and _is_kept(old):
                old.unlink()
    if files:
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def tokenizer_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return those of kept files that are the tokenizer's."""
    return {name: content for name, content in files.items() if name in _TOKENIZER}


def files_of_weights(files: Mapping[str, bytes], names: Collection[str]) -> dict[str, str] | None:
    """Return name of a tensor -> file, as the kept index has it.

    Args:
        files: Kept files.
        names: The tensors that are written.

    Returns:
        None without an index, and where it lists other tensors than these or anything but files of
        the folder itself.
    """
    listed = _index(files).get("weight_map", {})
    # A name with a folder in it would be written elsewhere.
    plain = all(re.fullmatch(r"[\w.-]+\.safetensors", str(file)) for file in listed.values())
    return dict(listed) if plain and listed and set(listed) == set(names) else None


def index_as_it_came(files: Mapping[str, bytes], written: Mapping[str, Any]) -> bytes | None:
    """Return the kept index of the weights where it says what the written one does."""
    index = _index(files)
    same = index.get("weight_map") == written["weight_map"]
    size = index.get("metadata", {}).get("total_size")
    return files[INDEX] if same and size == written["metadata"]["total_size"] else None


def as_it_came(files: Mapping[str, bytes], name: str, value: Any) -> bytes | None:
    """Return a kept JSON file where it says just ``value``, order of keys and blanks aside."""
    content = files.get(name)
    return content if content is not None and json.loads(content) == value else None


def _index(files: Mapping[str, bytes]) -> dict[str, Any]:
    return json.loads(files[INDEX]) if INDEX in files else {}


def _is_kept(file: Path) -> bool:
    return file.suffix in _KINDS
