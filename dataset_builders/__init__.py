"""Datasets as they are on disk, read into samples: facts about images, no detector and no model.

`DATASETS` names every dataset; a family's module holds its builders and, at its end, its lines of this table.
"""

from dataset_builders import drawn_world, exhaustive
from dataset_builders.folders import DataFolders
from dataset_builders.spec import BuildOptions, DatasetSpec, ImageSource

__all__ = ["DATASETS", "IMAGE_SOURCES", "BuildOptions", "DataFolders", "DatasetSpec", "ImageSource"]

DATASETS: dict[str, DatasetSpec] = {spec.name: spec for spec in (*drawn_world.DATASETS, *exhaustive.DATASETS)}
"""Every dataset by name; `_all` asks each image for all categories at once, as COCO AP is measured."""
IMAGE_SOURCES: dict[str, ImageSource] = {
    source.name: source for spec in DATASETS.values() for source in spec.images
}
"""Every image source by name."""
