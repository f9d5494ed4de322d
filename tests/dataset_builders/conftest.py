"""COCO records written by hand, a small drawn world, and a reader that sorts a builder's items."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.drawn_world.write import WorldSettings, write_world
from dataset_builders.readers.coco_images import coco_source
from dataset_builders.records import REJECT_SCHEMA, Ledger, Reject, Sample, reject_to_row


def coco_records() -> dict[str, Any]:
    """Three images: two cats and a dog; a cat beside a crowd of cats; nothing at all."""
    return {
        "info": {},
        "images": [
            {"id": 7, "file_name": "seven.jpg", "width": 100, "height": 80},
            {"id": 3, "file_name": "three.jpg", "width": 64, "height": 64},
            {"id": 5, "file_name": "five.jpg", "width": 50, "height": 40},
        ],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 18, "bbox": [1.5, 2, 10, 20.25], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 18, "bbox": [90, 70, 20, 20], "iscrowd": 0},
            {"id": 3, "image_id": 7, "category_id": 90, "bbox": [0, 0, 30, 30], "iscrowd": 0},
            {"id": 4, "image_id": 7, "category_id": 18, "bbox": [-2, 10, 12, 10], "iscrowd": 0},
            {"id": 5, "image_id": 3, "category_id": 18, "bbox": [30, 30, 30, 30], "iscrowd": 1},
        ],
        "categories": [
            {"id": 18, "name": "cat"},
            {"id": 90, "name": "dog"},
            {"id": 2, "name": "toaster"},
        ],
    }


@pytest.fixture
def records() -> dict[str, Any]:
    return coco_records()


@pytest.fixture
def coco_root(tmp_path: Path) -> Callable[[Any], Path]:
    """Return a function that writes a COCO folder of the given records and returns it."""

    def write(content: Any) -> Path:
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "train2017").mkdir(exist_ok=True)
        (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
        return tmp_path

    return write


@pytest.fixture(scope="session")
def drawn_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    write_world(root, WorldSettings(train=60, val=20, seed=3))
    return root


def collect(items: Any) -> SimpleNamespace:
    """Sort what a builder yields, and hold it to its ledger: samples, rejects, reasons, ledger."""
    items = list(items)
    rejects = [item for item in items if isinstance(item, Reject)]
    samples = [item for item in items if isinstance(item, Sample)]
    (ledger,) = [item for item in items if isinstance(item, Ledger)]
    assert items[-1] is ledger
    ledger.check(Counter(reject.unit for reject in rejects))
    pa.Table.from_pylist([reject_to_row(reject) for reject in rejects], REJECT_SCHEMA).validate(
        full=True
    )
    ids = [sample.sample_id for sample in samples]
    assert len(set(ids)) == len(ids)
    return SimpleNamespace(
        samples=samples,
        rejects=rejects,
        reasons=Counter(reject.reason for reject in rejects),
        ledger=ledger,
        tasks=Counter(sample.task for sample in samples),
    )


COCO_FILES = {"file": "coco/annotations/instances_train2017.json", "folder": "coco/train2017"}
COCO_SOURCE = coco_source("coco", **COCO_FILES, num_buckets=4)


def coco_folders(root: Path) -> DataFolders:
    """Folders of which "coco" is `root`."""
    return DataFolders("/nowhere", {"coco": str(root)})


def build_coco(
    root: Path, options: BuildOptions | None = None, *, ask: str = "present"
) -> SimpleNamespace:
    from dataset_builders.tasks.detection import build

    return collect(
        build(
            coco_folders(root),
            options or BuildOptions(),
            dataset="coco",
            source=COCO_SOURCE,
            ask=ask,
            **COCO_FILES,
        )
    )


def text_of(turn: Any) -> str:
    """A turn as one string, its objects in square brackets."""
    return "".join(
        (part.text or "") + ("[" + ",".join(map(str, part.objects)) + "]" if part.objects else "")
        for part in turn.parts
    )
