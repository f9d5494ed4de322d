"""Weights on disk: safetensors files of a folder, one or several with an index, tensor by tensor.

Reading never holds more than one tensor beside the model, writing more than one file of them, so
that a model of billions of parameters moves in little more memory than its own.
"""

import json
import pickle
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fo1_model.errors import SettingError

FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_FILE_BYTES = 5_000_000_000
"""Size of one file of weights, bytes, as in transformers."""
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_MOST_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class StoredWeights:
    """What the safetensors files of a folder hold."""

    folder: Path
    """Folder of the files."""
    files: dict[str, tuple[str, ...]]
    """File -> names of its tensors."""
    shapes: dict[str, tuple[int, ...]]
    """Name -> shape, of every tensor."""

    def tensors(self, wanted: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor, or those that are wanted, in its stored type; read in its turn."""
        for file, names in self.files.items():
            with safe_open(self.folder / file, framework="pt") as opened:
                for name in names:
                    if wanted is None or name in wanted:
                        yield name, opened.get_tensor(name)

    def read(self, name: str) -> Tensor:
        """Return one tensor in its stored type."""
        file = next(file for file, names in self.files.items() if name in names)
        with safe_open(self.folder / file, framework="pt") as opened:
            return opened.get_tensor(name)


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file by name.

    No code of the file runs.

    Args:
        path: Safetensors, or a torch file of plain tensors, bare or under "model".

    Raises:
        SettingError: Naming a file that is missing, unreadable or holds anything else.
    """
    if not path.is_file():
        raise SettingError(f"{path}: no such file; give a state dict")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise SettingError(f"{path} is not a file of plain tensors: {error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        # Torch's own message advises to load without the protection.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it would run {code[1]}" if code else "it is cut short or of another kind"
        raise SettingError(f"{path} is not a file of plain tensors: {why}") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise SettingError(
            f"{path} holds no state dict: save model.state_dict() alone, or under 'model'"
        )
    return dict(content)


def open_weights(path: Path) -> StoredWeights:
    """Return the weights at a path, by their headers alone.

    Args:
        path: A folder: the files its index names, or without an index all ``model*.safetensors``;
            or one safetensors file.

    Raises:
        SettingError: When there are none, a file is missing or unreadable, a tensor is there twice,
            or index and files disagree.
    """
    folder = path.parent if path.is_file() else path
    index = path / INDEX
    listed: Mapping[str, str] | None = None
    if index.is_file():
        content = read_json(index)
        listed = content.get("weight_map") if isinstance(content, Mapping) else None
        if not isinstance(listed, Mapping):
            raise SettingError(f"{index} has no weight_map of names and files")
    found = (
        {path.name} if path.is_file() else {file.name for file in path.glob("model*.safetensors")}
    )
    files = sorted(set(listed.values()) if listed else found)
    if not files:
        raise SettingError(f"{folder} holds no model*.safetensors")
    names: dict[str, tuple[str, ...]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if not (folder / file).is_file():
            raise SettingError(f"{folder} lacks {file}, which {INDEX} names")
        try:
            with safe_open(folder / file, framework="pt") as opened:
                names[file] = tuple(opened.keys())
                for name in names[file]:
                    if name in shapes:
                        raise SettingError(f"{folder} holds {name} twice, again in {file}")
                    shapes[name] = tuple(opened.get_slice(name).get_shape())
        except SafetensorError as error:
            raise SettingError(
                f"{folder / file} is not a readable safetensors file: {error}"
            ) from error
    if listed is not None:
        check_names(set(listed), set(shapes), f"{folder}, as {INDEX} lists it")
    return StoredWeights(folder=folder, files=names, shapes=shapes)


def check_names(expected: set[str], given: set[str], what: str) -> None:
    """Raise SettingError naming the weights that are missing or left over, if there are any."""
    for names, fault in ((expected - given, "missing"), (given - expected, "not the model's")):
        if names:
            shown = ", ".join(sorted(names)[:_MOST_NAMED])
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            raise SettingError(f"{what}: {len(names)} weights are {fault}: {shown}{more}")


def check_weights(
    own: Mapping[str, Tensor], given: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Raise SettingError when names or shapes are not exactly the model's; as `load_weights`."""
    check_names(set(own), set(given), what)
    for name, value in own.items():
        if tuple(value.shape) != given[name]:
            raise SettingError(
                f"{what}: {name} is {list(given[name])}, the model has {list(value.shape)}"
            )


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors a model is stored as, by name; a shared one goes by its first name."""
    named: dict[int, tuple[str, Tensor]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        named.setdefault(id(value), (name, value))
    return dict(named.values())


def load_weights(
    own: Mapping[str, Tensor],
    given: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    what: str,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Put tensors in the place of the model's own, one after the other.

    Args:
        own: Name -> tensor of the model.
        given: Name -> shape of the tensors.
        tensors: Pairs (name, tensor), each read when its turn comes.
        what: Where they come from, for messages.
        dtype: Type of all of them; None keeps each as it is stored.
        device: Where they are put.

    Raises:
        SettingError: Before anything is read, when names or shapes are not exactly the model's.
    """
    check_weights(own, given, what)
    for name, tensor in tensors:
        # A copy, or the model would keep the file open and change with it.
        own[name].data = tensor.to(device=device, dtype=dtype or tensor.dtype, copy=True)


def write_weights(
    folder: Path,
    tensors: Mapping[str, Callable[[], Tensor]],
    sizes: Mapping[str, int],
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write a folder's weights: ``model.safetensors``, or numbered files and an index.

    The same tensors give the same bytes. Files of weights that the folder held before are removed.

    Args:
        folder: Made when it is not there.
        tensors: Name -> function that gives the tensor, called when its file is written.
        sizes: Name -> bytes of the tensor.
        max_file_bytes: Size in bytes above which there are several files.
        files: Name -> file of every tensor, for files as they were elsewhere; ``max_file_bytes``
            is not looked at then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Files of an earlier save would be read along with the new ones.
    for old in folder.iterdir():
        if old.name in (FILE, INDEX) or _SHARD.fullmatch(old.name):
            old.unlink()
    grouped = _by_size(sizes, max_file_bytes) if files is None else _by_file(files)
    for file, names in grouped.items():
        values = {name: tensors[name]().detach().cpu().contiguous() for name in names}
        save_file(values, folder / file, metadata={"format": "pt"})
    if files is not None or list(grouped) != [FILE]:
        weight_map = {name: file for file, names in grouped.items() for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_json(folder / INDEX, index)


def _by_size(sizes: Mapping[str, int], max_file_bytes: int) -> dict[str, list[str]]:
    """Return file -> names of its tensors, each file filled up to a size in bytes."""
    groups: list[list[str]] = [[]]
    filled = 0
    # Sorted: files depend on the tensors alone, not on the order of the modules.
    for name in sorted(sizes):
        if groups[-1] and filled + sizes[name] > max_file_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += sizes[name]
    if len(groups) == 1:
        return {FILE: groups[0]}
    numbers = range(1, len(groups) + 1)
    files = [f"model-{number:05d}-of-{len(groups):05d}.safetensors" for number in numbers]
    return dict(zip(files, groups, strict=True))


def _by_file(files: Mapping[str, str]) -> dict[str, list[str]]:
    """Return file -> names of its tensors, of name -> file."""
    groups: dict[str, list[str]] = {}
    for name in sorted(files):
        groups.setdefault(files[name], []).append(name)
    return groups


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        SettingError: Naming the file when it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingError(f"{path} is not JSON: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write a value the same way every time."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class _LeaveParameters(TorchFunctionMode):
    """Functions that would fill a parameter in place do nothing."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        fills = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        filled = args[0] if args else (kwargs or {}).get("tensor")  # as torch.nn.init passes it on
        if fills and isinstance(filled, nn.Parameter):
            return filled
        return func(*args, **(kwargs or {}))


@contextmanager
def uninitialised() -> Iterator[None]:
    """Build modules inside this context without drawing their weights: for what is loaded at once.

    They keep what lies in memory. Nothing is drawn and no memory is touched, so that billions of
    parameters take seconds and no room. Buffers are computed as ever.
    """
    with _LeaveParameters():
        yield
