"""What is known of one image: its cleaned boxes with their ids; and windows into a crowded one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dataset_builders.records import BadRecord, ImageRef, Object, Sample, Turn

Window = tuple[int, int, int, int]
"""Part of an image, xyxy in pixels of the original image."""
MIN_KEPT_SHARE = 0.5
"""Share of a box's area below which a window that cuts it makes it an ignore region. ours"""
WINDOW_OVERLAP = 0.1
"""Share of a window's side by which its halves overlap, so that a box on the cut is whole in one of
them. ours"""
MIN_WINDOW_PX = 64
"""Side below which windows are not cut: an image that still shows too many objects there is given
up. ours"""


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What annotation files say of one image, or of a window into it."""

    ref: ImageRef
    """The image; its width and height are known."""
    objects: tuple[Object, ...] = ()
    """Boxes of the image in the file's order; crowd and don't-care regions are `ignore`."""
    ids: tuple[Any, ...] = ()
    """The file's id of each object."""
    uncertain: frozenset[str] = frozenset()
    """Labels of which a box was rejected: neither complete nor absent."""
    window: Window | None = None
    """Part of the image that this is about; None for all of it."""

    def present(self) -> dict[str, tuple[int, ...]]:
        """Return label -> rows of its objects, ignore regions and uncertain labels left out."""
        rows: dict[str, list[int]] = {}
        for row, item in enumerate(self.objects):
            if not item.ignore and item.label not in self.uncertain:
                rows.setdefault(item.label, []).append(row)
        return {label: tuple(found) for label, found in rows.items()}

    def crowded(self) -> frozenset[str]:
        """Return the labels with an ignore region: present, but not countable."""
        return frozenset(item.label for item in self.objects if item.ignore)

    def absent(self, categories: Sequence[str]) -> tuple[str, ...]:
        """Return the categories without any box, not even a doubtful one, in their order."""
        known = {item.label for item in self.objects} | self.uncertain
        return tuple(name for name in categories if name not in known)

    @property
    def num_boxed(self) -> int:
        """Number of objects that are no ignore regions."""
        return sum(not item.ignore for item in self.objects)

    def sample(
        self, *, dataset: str, task: str, number: int | str, turns: tuple[Turn, ...], **facts: Any
    ) -> Sample:
        """Return a sample about this image or window.

        Args:
            dataset: Name of the dataset.
            task: One of `records.TASKS`.
            number: Tells the samples of one task and image apart.
            turns: The conversation.
            **facts: Further fields of `Sample`, such as absent_labels with absent_regime.
        """
        ref = self.ref
        place = "" if self.window is None else "@" + "-".join(map(str, self.window))
        return Sample(
            sample_id=f"{dataset}/{ref.image_id}{place}/{task}/{number}",
            dataset=dataset,
            task=task,
            image_source=ref.image_source,
            image_id=ref.image_id,
            image_uri=ref.image_uri,
            width=ref.width,
            height=ref.height,
            window=self.window,
            objects=self.objects,
            turns=turns,
            **facts,
        )

    def windows(self, max_objects: int) -> Iterator["ImageFacts"]:
        """Yield the image itself when it shows few enough objects, else windows that do.

        A window that shows too many is halved across its longer side. Windows without any object
        are left out.

        Args:
            max_objects: Most objects of a window, ignore regions not counted.

        Raises:
            BadRecord: The reason is too_many_regions: the smallest windows still show too many.
        """
        if self.num_boxed <= max_objects:
            yield self
            return
        pending: list[Window] = [self.window or (0, 0, self.ref.width, self.ref.height)]
        while pending:
            window = pending.pop(0)
            view = self.view(window)
            if view.num_boxed > max_objects:
                # in front, so that the halves of a window come together
                pending[:0] = _halves(window, self.num_boxed)
            elif view.num_boxed:
                yield view

    def view(self, window: Window) -> "ImageFacts":
        """Return the facts of a window: boxes cut at its border, `ignore` where cut too much."""
        x1, y1, x2, y2 = window
        objects, ids = [], []
        for item, number in zip(self.objects, self.ids, strict=True):
            left, top, right, bottom = item.box
            box = (max(left, x1), max(top, y1), min(right, x2), min(bottom, y2))
            if box[2] - box[0] < 1 or box[3] - box[1] < 1:
                continue
            kept = (box[2] - box[0]) * (box[3] - box[1]) / ((right - left) * (bottom - top))
            whole = kept >= MIN_KEPT_SHARE
            box = tuple(float(np.float32(value)) for value in box)  # type: ignore[assignment]
            objects.append(replace(item, box=box, ignore=item.ignore or not whole))
            ids.append(number)
        return replace(self, objects=tuple(objects), ids=tuple(ids), window=window)


def _halves(window: Window, num_objects: int) -> list[Window]:
    """Return the two halves of a window across its longer side, overlapping."""
    x1, y1, x2, y2 = window
    wide = x2 - x1 >= y2 - y1
    side = x2 - x1 if wide else y2 - y1
    if side < 2 * MIN_WINDOW_PX:
        raise BadRecord(
            "too_many_regions", f"{num_objects} objects, too many even for windows of {side} px"
        )
    half = int(side * (0.5 + WINDOW_OVERLAP / 2))
    if wide:
        return [(x1, y1, x1 + half, y2), (x2 - half, y1, x2, y2)]
    return [(x1, y1, x2, y1 + half), (x1, y2 - half, x2, y2)]


def whole_image(ref: ImageRef, label: str) -> Object:
    """Return an object that covers the whole image."""
    return Object(box=(0.0, 0.0, float(ref.width), float(ref.height)), label=label)


def unique(texts: Sequence[str], key: Callable[[str], str] = str.casefold) -> list[int]:
    """Return the positions of texts that are not yet there by `key`, in order."""
    first: dict[str, int] = {}
    for position, text in enumerate(texts):
        first.setdefault(key(text), position)
    return list(first.values())
