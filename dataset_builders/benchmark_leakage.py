"""Images of benchmarks, which no training example may show.

A benchmark's list of images is read from its official files, or from a list that a user writes
(``benchmarks/NAME.txt``, a line an image: ``coco 391895``). Images are told apart by key space and
id, so that one list serves every dataset over the same images: COCO, LVIS, RefCOCO, PACO, Osprey
and the rest share COCO's ids, Visual Genome, GQA and VAW those of Visual Genome; and where Visual
Genome's ``image_data.json`` names a COCO twin, both are out.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.image_sources import coco_id, stem
from dataset_builders.readers.json_files import stream_array
from dataset_builders.tasks.referring import load_refs

Key = tuple[str, str]
"""Key space and image id, such as ("coco", "391895")."""
TWINS = "vg/image_data.json"
"""Visual Genome's list of images, with the COCO id of those that are COCO's."""
USER_LISTS = "benchmarks/*.txt"
"""Lists that a user writes; the name of the file is that of the list."""


# What the short readers below raise on a file of another form: they look fields up without checking
# each. ValueError stands for BadRecord, bytes that are not UTF-8 and text that is no number too.
_WRONG_FORM = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class BenchmarkImages:
    """The list of the images of one benchmark."""

    name: str
    """Name of the benchmark, under which images left out are counted."""
    files: tuple[str, ...]
    """Files that list the images (names or patterns below the data root)."""
    spaces: tuple[str, ...]
    """Key spaces of the images; empty when only the file says."""
    read: Callable[[DataFolders], Iterator[Key]]
    """Yields the images; some may come twice. It may raise whatever a file of another form makes it
    raise: `excluded_images` turns that into a SettingError."""

    def missing(self, folders: DataFolders) -> str:
        """Return the first of its files that is not there; empty when all are."""
        return next((name for name in self.files if not folders.matches(name)), "")


def benchmark_lists(folders: DataFolders) -> dict[str, BenchmarkImages]:
    """Return every list by name: those of the paper's benchmarks, and a user's own."""
    own = (
        BenchmarkImages(
            name=stem(file), files=(file,), spaces=(), read=partial(_user_list, file=file)
        )
        for file in folders.matches(USER_LISTS)
    )
    return {item.name: item for item in (*PAPER_LISTS, *own)}


def excluded_images(folders: DataFolders, names: Iterable[str]) -> dict[Key, str]:
    """Return every image of the named benchmarks, twins included, and which benchmark has it first.

    Raises:
        SettingError: A name is unknown, or a file is not there or not of its official form.
    """
    lists = benchmark_lists(folders)
    excluded: dict[Key, str] = {}
    for name in names:
        if name not in lists:
            raise SettingError(
                f"exclude: unknown benchmark list {name!r}; known: {', '.join(lists)}"
            )
        if missing := lists[name].missing(folders):
            raise SettingError(
                f"exclude: {name} needs {missing}: there is no {folders.path(missing)}. Put it "
                f"there, or leave {name} out of exclude."
            )
        for key in _read(lists[name], folders):
            excluded.setdefault(key, name)
    for one, other in _twins(folders) if excluded else ():
        for key, twin in ((one, other), (other, one)):
            if key in excluded and twin not in excluded:
                excluded[twin] = excluded[key]
    return excluded


def _read(images: BenchmarkImages, folders: DataFolders) -> Iterator[Key]:
    """Yield the images of one list; name its files when they are of another form."""
    try:
        yield from images.read(folders)
    except SettingError:
        raise  # names its file already
    except _WRONG_FORM as error:
        files = ", ".join(images.files)
        raise SettingError(
            f"exclude: {images.name}: {files} is not of its official form ({error!r})"
        ) from error


def _twins(folders: DataFolders) -> Iterator[tuple[Key, Key]]:
    """Yield pairs of Visual Genome and COCO ids of the same image; none without Visual Genome."""
    if not folders.matches(TWINS):
        return
    for record in stream_array(folders.path(TWINS), None):
        if isinstance(record, dict) and record.get("coco_id") is not None:
            yield (
                ("vg", str(record.get("image_id", record.get("id")))),
                ("coco", str(record["coco_id"])),
            )


def _coco_images(folders: DataFolders, *, files: tuple[str, ...], space: str) -> Iterator[Key]:
    for file in files:
        for record in stream_array(folders.path(file), "images"):
            yield space, str(record["id"])


def _image_names(folders: DataFolders, *, pattern: str, space: str) -> Iterator[Key]:
    for file in folders.matches(pattern):
        for record in stream_array(folders.path(file), "images"):
            yield space, stem(record["file_name"])


def _refs(folders: DataFolders, *, files: tuple[str, ...]) -> Iterator[Key]:
    for pattern in files:
        for file in folders.matches(pattern):
            for ref in load_refs(folders.path(file)):
                if ref["split"] != "train":
                    yield "coco", str(int(ref["image_id"]))


def _counterfactual(folders: DataFolders, *, files: tuple[str, ...]) -> Iterator[Key]:
    for file in files:
        for split in ("val", "test", "testA", "testB"):
            for row in stream_array(folders.path(file), split):
                yield "coco", str(int(row["iid"]))


def _names(folders: DataFolders, *, file: str, field: str, space: str) -> Iterator[Key]:
    """Yield the images of a list of records with a file name, or id, of COCO or Visual Genome."""
    for record in stream_array(folders.path(file), None):
        value = record[field]
        yield (
            space,
            coco_id(value) if space == "coco" and isinstance(value, str) else stem(str(value)),
        )


def _tally(folders: DataFolders, *, file: str) -> Iterator[Key]:
    for record in stream_array(folders.path(file), None):
        path = record["image"]
        yield ("vg", stem(path)) if path.startswith("VG_100K") else ("coco", coco_id(path))


def _gqa(folders: DataFolders, *, file: str) -> Iterator[Key]:
    with folders.path(file).open(encoding="utf-8") as stream:  # 12,578 questions, some MB
        questions: dict[str, Any] = json.load(stream)
    for question in questions.values():
        yield "vg", str(question["imageId"])


def _lines(folders: DataFolders, *, files: tuple[str, ...], space: str) -> Iterator[Key]:
    for file in files:
        for line in folders.path(file).read_text(encoding="utf-8").split():
            yield space, line


def _user_list(folders: DataFolders, *, file: str) -> Iterator[Key]:
    for number, line in enumerate(folders.path(file).read_text(encoding="utf-8").splitlines(), 1):
        space, blank, image_id = line.strip().partition(" ")
        if line.strip() and not blank:
            raise SettingError(
                f"exclude: {file} line {number} is {line!r}; "
                "write KEY_SPACE IMAGE_ID, as coco 391895"
            )
        if line.strip():
            yield space, image_id


def _list(
    name: str, *files: str, spaces: tuple[str, ...], read: Callable[..., Iterator[Key]]
) -> BenchmarkImages:
    return BenchmarkImages(name=name, files=files, spaces=spaces, read=read)


def _coco_list(name: str, *files: str, space: str = "coco") -> BenchmarkImages:
    return _list(
        name, *files, spaces=(space,), read=partial(_coco_images, files=files, space=space)
    )


def _refs_list(name: str, *files: str) -> BenchmarkImages:
    return _list(name, *files, spaces=("coco",), read=partial(_refs, files=files))


def _counterfactual_list(name: str, *files: str) -> BenchmarkImages:
    return _list(name, *files, spaces=("coco",), read=partial(_counterfactual, files=files))


def _name_list(name: str, file: str, *, field: str, space: str = "coco") -> BenchmarkImages:
    return _list(
        name, file, spaces=(space,), read=partial(_names, file=file, field=field, space=space)
    )


PAPER_LISTS = (
    _coco_list("coco_val", "coco/annotations/instances_val2017.json"),
    _coco_list("lvis_val", "lvis/lvis_v1_val.json"),
    _coco_list("paco_test", "paco/paco_lvis_v1_test.json"),
    _name_list("lvis_regions", "benchmarks/lvis_val_1k_category.json", field="file_name"),
    _name_list("paco_regions", "benchmarks/paco_val_1k_category.json", field="file_name"),
    _name_list("coco_text", "benchmarks/COCOText_box.json", field="image_name"),
    _refs_list("refcoco", "refcoco/refs(unc).p"),
    _refs_list("refcocop", "refcoco+/refs(unc).p"),
    _refs_list("refcocog", "refcocog/refs(umd).p"),
    _refs_list("grefcoco", "grefcoco/grefs(unc).*"),
    _counterfactual_list(
        "c_refcoco", "crec/c_refcoco.json", "crec/c_refcoco+.json", "crec/c_refcocog.json"
    ),
    _list(
        "tallyqa_test",
        "tallyqa/test.json",
        spaces=("coco", "vg"),
        read=partial(_tally, file="tallyqa/test.json"),
    ),
    _list(
        "gqa_testdev",
        "gqa/testdev_balanced_questions.json",
        spaces=("vg",),
        read=partial(_gqa, file="gqa/testdev_balanced_questions.json"),
    ),
    _name_list("vaw_test", "vaw/data/test.json", field="image_id", space="vg"),
    _list(
        "flickr30k_eval",
        "flickr30k/val.txt",
        "flickr30k/test.txt",
        spaces=("flickr30k",),
        read=partial(_lines, files=("flickr30k/val.txt", "flickr30k/test.txt"), space="flickr30k"),
    ),
    _list(
        "finecops_test",
        "finecops/*test*coco_format.json",
        spaces=("vg",),
        read=partial(_image_names, pattern="finecops/*test*coco_format.json", space="vg"),
    ),
    _coco_list("drawn_val", "drawn/annotations/instances_val.json", space="drawn"),
)
"""Benchmarks whose images lie among those of training sets. CountBench, PixMo-Count, HumanRef and
the ODinW sets have images of their own."""
