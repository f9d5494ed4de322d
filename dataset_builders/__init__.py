"""Datasets as they are on disk, read into samples: facts about images, no detector and no model.

`DATASETS` names every dataset; its builders are imported when they are called, so listing them costs nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataset_builders.records import ImageRef, Ledger, Reject, Sample

__all__ = ["DATASETS", "BuildOptions", "DatasetSpec"]


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What can be chosen about the samples made from one image; part of the fingerprint of the samples."""

    seed: int = 0
    """Every choice is drawn from (seed, dataset, image id), so it depends on nothing else."""
    paraphrases: bool = False
    """Draw question wordings from the table of `prompts`; False asks in the release's own words always."""
    single_names: int = 2
    """Detection questions an image that ask for one present category; one more asks for all present ones."""
    counting: int = 2
    """Counting questions an image, each about a present category without crowd region."""
    region_names: int = 2
    """Questions an image that show a region and ask for its name."""

    def __post_init__(self) -> None:
        for name in ("single_names", "counting", "region_names"):
            if getattr(self, name) < 0:
                raise ValueError(f"BuildOptions.{name}={getattr(self, name)}: want 0 or more")


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One dataset: where its official files lie below its folder, and how they become samples."""

    name: str
    """Name of the samples and shards."""
    folder: str
    """Usual name of its folder below the data root."""
    image_source: str
    """Datasets over the same images share their proposals under this name, and their number of buckets."""
    build: "Callable[[Path, BuildOptions], Iterator[Sample | Reject | Ledger]]"
    """The builder, a generator; called through `samples`."""
    list_images: "Callable[[Path], Iterator[ImageRef | Reject]]"
    """Lists the image source; called through `images`."""
    files: tuple[str, ...]
    """Annotation files relative to the folder; their content is the identity of the dataset."""
    image_files: tuple[str, ...]
    """Annotation files that `list_images` reads: the identity of the image source."""
    picture_folder: str
    """Its pictures, relative to the folder."""
    num_buckets: int
    """Units of work of the image source."""
    version: int = 1
    """Raised when the builder's code changes what it yields."""
    tasks: tuple[str, ...]
    """Tasks of its samples."""
    licence: str
    """Licence of annotations and images."""
    source: str
    """Official place to get it."""
    layout: str
    """The files below its folder, for people."""

    def samples(self, root: Path, options: BuildOptions) -> "Iterator[Sample | Reject | Ledger]":
        """Samples and rejects, then one ledger.

        root: the dataset's folder. Raises ValueError at once when it lacks a file, and while reading when
        one is not of its form.
        """
        self._require(root, self.files)
        return self.build(root, options)

    def images(self, root: Path) -> "Iterator[ImageRef | Reject]":
        """Every image of the image source, whether or not it has samples. Errors as for `samples`."""
        self._require(root, self.image_files)
        return self.list_images(root)

    def _require(self, root: Path, files: tuple[str, ...]) -> None:
        from dataset_builders.conventions import require_files

        require_files(root, (*files, self.picture_folder), dataset=self.name, layout=self.layout)


def _coco(
    name: str,
    *,
    folder: str,
    image_source: str,
    annotations: str,
    images: str,
    num_buckets: int,
    licence: str,
    source: str,
    ask: str = "present",
) -> DatasetSpec:
    """A dataset in COCO detection form; see `detection.build`."""
    layout = f"{annotations}   COCO instances JSON\n{images}/   its pictures, by file_name"

    def build(root: Path, options: BuildOptions) -> "Iterator[Sample | Reject | Ledger]":
        from dataset_builders.detection import build as build_samples

        return build_samples(
            root,
            options,
            dataset=name,
            annotations=annotations,
            images=images,
            num_buckets=num_buckets,
            ask=ask,
        )

    return DatasetSpec(
        name=name,
        folder=folder,
        image_source=image_source,
        build=build,
        list_images=_list_coco(annotations, images, num_buckets),
        files=(annotations,),
        image_files=(annotations,),
        picture_folder=images,
        num_buckets=num_buckets,
        tasks=("detection",) if ask == "all" else ("detection", "counting", "region_name", "rejection"),
        licence=licence,
        source=source,
        layout=layout,
    )


def _list_coco(
    annotations: str, images: str, num_buckets: int
) -> "Callable[[Path], Iterator[ImageRef | Reject]]":
    def list_them(root: Path) -> "Iterator[ImageRef | Reject]":
        from dataset_builders.coco_files import list_images

        return list_images(root, annotations=annotations, images=images, num_buckets=num_buckets)

    return list_them


_DRAWN = {"folder": "drawn", "licence": "Apache-2.0", "source": "python -m dataset_builders.synthetic OUT"}
_DRAWN_BUCKETS = {"train": 8, "val": 4}


def _drawn(split: str, *, ask: str = "present") -> DatasetSpec:
    return _coco(
        f"drawn_{split}" + ("_all" if ask == "all" else ""),
        image_source=f"drawn_{split}",
        annotations=f"annotations/instances_{split}.json",
        images=split,
        num_buckets=_DRAWN_BUCKETS[split],
        ask=ask,
        **_DRAWN,
    )


def _drawn_refs(split: str) -> DatasetSpec:
    """REFER expressions over the drawn world; see `referring.build`."""
    base = _drawn(split)
    files = ("refs/refs(drawn).p", "refs/instances.json")
    layout = f"{files[0]}   REFER's pickled list\n{files[1]}   COCO instances JSON\n{split}/   its pictures"

    def build(root: Path, options: BuildOptions) -> "Iterator[Sample | Reject | Ledger]":
        from dataset_builders.referring import build as build_samples

        return build_samples(
            root,
            options,
            dataset=f"drawn_refs_{split}",
            refs=files[0],
            instances=files[1],
            images=split,
            split=split,
            num_buckets=base.num_buckets,
        )

    return _over_images(base, f"drawn_refs_{split}", build, files=files, tasks=("referring",), layout=layout)


def _drawn_tally(split: str) -> DatasetSpec:
    """TallyQA questions over the drawn world; see `counting.build`."""
    base = _drawn(split)
    files = (f"tally/{split}.json", f"annotations/instances_{split}.json")
    layout = (
        f"{files[0]}   TallyQA's list of questions\n{files[1]}   COCO instances JSON\n{split}/   its pictures"
    )

    def build(root: Path, options: BuildOptions) -> "Iterator[Sample | Reject | Ledger]":
        from dataset_builders.counting import build as build_samples

        return build_samples(
            root,
            options,
            dataset=f"drawn_tally_{split}",
            questions=files[0],
            instances=files[1],
            images=split,
            num_buckets=base.num_buckets,
        )

    return _over_images(base, f"drawn_tally_{split}", build, files=files, tasks=("counting",), layout=layout)


def _over_images(
    base: DatasetSpec,
    name: str,
    build: "Callable[[Path, BuildOptions], Iterator[Sample | Reject | Ledger]]",
    *,
    files: tuple[str, ...],
    tasks: tuple[str, ...],
    layout: str,
) -> DatasetSpec:
    """Another dataset over the images of `base`."""
    return replace(base, name=name, build=build, files=files, tasks=tasks, layout=layout)


_COCO = {
    "licence": "annotations CC BY 4.0; images under their own Flickr licences",
    "source": "https://cocodataset.org/#download",
}


def _coco2017(split: str, num_buckets: int, *, ask: str = "present") -> DatasetSpec:
    return _coco(
        f"coco_{split}" + ("_all" if ask == "all" else ""),
        folder="coco",
        image_source=f"coco_{split}2017",
        annotations=f"annotations/instances_{split}2017.json",
        images=f"{split}2017",
        num_buckets=num_buckets,
        ask=ask,
        **_COCO,
    )


def _coco_form(name: str, *, ask: str = "present") -> DatasetSpec:
    """Any folder in COCO's layout, whatever its size: a sample of COCO, or a user's own data."""
    return _coco(
        name,
        folder="coco",
        image_source="coco",
        annotations="annotations/instances_train2017.json",
        images="train2017",
        num_buckets=8,
        ask=ask,
        licence="that of the data",
        source="any folder in COCO's layout",
    )


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        _drawn("train"),
        _drawn("val"),
        _drawn("val", ask="all"),
        _drawn_refs("train"),
        _drawn_refs("val"),
        _drawn_tally("train"),
        _drawn_tally("val"),
        _coco2017("train", 256),
        _coco2017("val", 16),
        _coco2017("val", 16, ask="all"),
        _coco_form("coco"),
        _coco_form("coco_all", ask="all"),
    )
}
"""Every dataset by name; `_all` asks each image for all categories at once, as COCO AP is measured."""
