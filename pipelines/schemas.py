"""Rows that travel between the steps of the pipeline: proposals, region examples, predictions.

**Proposals**, one row an image (``part-00003.parquet`` of a proposals artifact, sorted by
image_id), written by `pipelines.proposals.generate`:

========  =================  ======================================================================
image_id  string             join key with samples
bucket    int32              unit of work, a hash of image_id
width     int32              decoded width in px; 0 when the image could not be decoded
height    int32              decoded height in px; 0 when the image could not be decoded
rotation  int32              EXIF orientation that decoding undid, 1 to 8; 0 if not decoded
boxes     list<float32[4]>   xyxy in original pixels, by descending score, stable
scores    list<float32>      the detector's confidence, aligned with boxes
status    string             ``ok``, or the reason why there are no boxes, such as ``missing_image``
error     string, nullable   detail for a person; null when ok
========  =================  ======================================================================

A **region example** is what a model trains on or is asked: a conversation in which regions have
indices. In a tar it is two adjacent members, ``KEY.jpg`` (original bytes) and ``KEY.json``
(`RegionExample.to_json`); without image it is the second alone.

**Predictions**, one row an example (``part-00003.parquet`` of a predictions artifact), written by
`pipelines.evaluation.predict`:

===============  ===============================  =================================================
sample_id        string                           id of the example
image_id         string                           id of its image within its source
task             string                           its task
text             string                           the answer as decoded
phrases          list<{text, regions}>            grounded phrases with the region ids each names
regions          list<int32>                      region ids named anywhere, each once
boxes            list<float32[4]>                 boxes of `regions`, xyxy in original pixels
scores           list<float32>                    scores of `regions`, see ``PredictConfig.score``
region_logprobs  list<float32>                    the model's log probabilities of `regions`
problem          string, nullable                 why the answer cannot be read; null when it can
===============  ===============================  =================================================
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

BOX = pa.list_(pa.field("item", pa.float32(), nullable=False), 4)

PROPOSALS_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("bucket", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("rotation", pa.int32(), nullable=False),
        pa.field("boxes", pa.list_(BOX), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
    ]
)

PREDICTION_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field(
            "phrases",
            pa.list_(
                pa.struct(
                    [pa.field("text", pa.string()), pa.field("regions", pa.list_(pa.int32()))]
                )
            ),
            nullable=False,
        ),
        pa.field("regions", pa.list_(pa.int32()), nullable=False),
        pa.field("boxes", pa.list_(BOX), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("region_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("problem", pa.string()),
    ]
)

PROPOSAL = "proposal"
"""Source of a box that a detector found (``box_sources`` of an example)."""
GROUND_TRUTH = "gt"
"""Source of a box that only the annotation has."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RegionExample:
    """One conversation whose regions have indices: region i is row i of `boxes`.

    The first user message starts with ``<image>``, then, if there are boxes, a line of
    ``<region0><regionfeat><region1><regionfeat>...``, then the question.
    """

    sample_id: str
    """Stable id of the sample that it was made from."""
    dataset: str
    """Name of the dataset in DATASETS."""
    task: str
    """Task of the conversation; ``detection`` for boxes alone (OPN training)."""
    image_id: str
    """Id of the image within its source."""
    width: int
    """Width of the original image, in px; 0 for a conversation without image."""
    height: int
    """Height of the original image, in px; 0 for a conversation without image."""
    window: tuple[int, int, int, int] | None = None
    """Part of the image that the example is about, xyxy in original pixels; None for the whole.

    The model sees it alone.
    """
    boxes: np.ndarray
    """Boxes of the regions, float32[N, 4], xyxy in original pixels, inside the window."""
    scores: tuple[float | None, ...]
    """Detector confidence of each box; None for a box that came from the annotation."""
    box_sources: tuple[str, ...]
    """``proposal`` or ``gt`` for each box: who found it.

    A matched proposal may carry the annotated box.
    """
    messages: tuple[dict[str, str], ...] = ()
    """Messages ``{"role", "content"}`` with index tokens; empty for OPN training."""
    targets: tuple[dict[str, Any], ...] = ()
    """What the last answer says: ``{"text", "regions": [int], "boxes": [[x1, y1, x2, y2]]}``.

    The boxes are the annotated ones, also those that no region covers.
    """
    ignore: tuple[bool, ...] | None = None
    """Which boxes are crowd or don't-care regions; for OPN training only."""
    complete: bool = True
    """Whether all objects of the annotated kinds have a box; for OPN training only.

    False with federated labels, or where only the objects of one expression are annotated.
    """

    def __post_init__(self) -> None:
        num_boxes = len(self.boxes)
        if self.boxes.shape != (num_boxes, 4) or self.boxes.dtype != np.float32:
            raise ValueError(
                f"{self.sample_id}: boxes are {self.boxes.dtype}{self.boxes.shape}, "
                "not float32[N, 4]"
            )
        for name in ("scores", "box_sources", "ignore"):
            values = getattr(self, name)
            if values is not None and len(values) != num_boxes:
                raise ValueError(f"{self.sample_id}: {len(values)} {name} for {num_boxes} boxes")

    def to_json(self) -> bytes:
        """Return deterministic JSON; numbers are the shortest decimals of the same float32."""
        # By hand, member by member: json would print float32 as float64, with 17 digits.
        targets = (
            f'{{"text":{_text(target["text"])},"regions":{_text(target["regions"])},'
            f'"boxes":{_boxes_text(np.asarray(target["boxes"], np.float32).reshape(-1, 4))}}}'
            for target in self.targets
        )
        scores = ("null" if s is None else _short_text(float(np.float32(s))) for s in self.scores)
        members = {
            "sample_id": _text(self.sample_id),
            "dataset": _text(self.dataset),
            "task": _text(self.task),
            "image_id": _text(self.image_id),
            "width": _text(self.width),
            "height": _text(self.height),
            "boxes": _boxes_text(self.boxes),
            "scores": f"[{','.join(scores)}]",
            "box_sources": _text(self.box_sources),
            "messages": _text(self.messages),
            "targets": f"[{','.join(targets)}]",
        }
        if self.window is not None:
            members["window"] = _text(self.window)
        if self.ignore is not None:
            members["ignore"] = _text(self.ignore)
        if not self.complete:
            members["complete"] = "false"
        return ("{" + ",".join(f'"{name}":{text}' for name, text in members.items()) + "}").encode()

    @classmethod
    def from_json(cls, data: bytes | str) -> RegionExample:
        """Return the example whose `to_json` this is; KeyError or ValueError when it is none."""
        value: Mapping[str, Any] = json.loads(data)
        return cls(
            **{
                name: value[name]
                for name in ("sample_id", "dataset", "task", "image_id", "width", "height")
            },
            window=tuple(value["window"]) if "window" in value else None,  # type: ignore[arg-type]
            boxes=np.asarray(value["boxes"], np.float32).reshape(-1, 4),
            scores=tuple(value["scores"]),
            box_sources=tuple(value["box_sources"]),
            messages=tuple(value["messages"]),
            targets=tuple(value["targets"]),
            ignore=tuple(value["ignore"]) if "ignore" in value else None,
            complete=value.get("complete", True),
        )


_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _boxes_text(boxes: np.ndarray) -> str:
    """Return the JSON of float32[N, 4]."""
    data = np.ascontiguousarray(boxes, np.float32).tobytes()
    return f"[{','.join(_box_text(data[at : at + 16]) for at in range(0, len(data), 16))}]"


@lru_cache(1 << 15)  # the boxes of an image come again with each of its questions
def _box_text(data: bytes) -> str:
    """Return the JSON of the float32[4] in these bytes."""
    return f"[{','.join(map(_short_text, np.frombuffer(data, np.float32).tolist()))}]"


@lru_cache(1 << 15)
def _short_text(value: float) -> str:
    """Return the shortest decimal of the same float32; ValueError when it is not finite."""
    if not math.isfinite(value):
        raise ValueError(f"{value} has no place in a box or a score")
    return repr(float(str(np.float32(value))))


def proposals_by_image(table: pa.Table) -> dict[str, dict[str, Any]]:
    """Return the rows of a proposals table by image_id.

    Args:
        table: Table of `PROPOSALS_SCHEMA`.

    Returns:
        Rows with boxes as float32[N, 4], xyxy px, and scores as float32[N].

    Raises:
        ValueError: An image has two rows.
    """
    rows: dict[str, dict[str, Any]] = {}
    for row in table.to_pylist():
        if row["image_id"] in rows:
            raise ValueError(f"two proposal rows for image {row['image_id']!r}")
        row["boxes"] = np.asarray(row["boxes"], np.float32).reshape(-1, 4)
        row["scores"] = np.asarray(row["scores"], np.float32)
        rows[row["image_id"]] = row
    return rows
