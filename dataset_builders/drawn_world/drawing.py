"""Drawn scenes: coloured shapes on cluttered backgrounds, with exact boxes.

A scene depends on its seed alone: the order of random draws below is part of its bytes. Boxes are
those of the full analytic shape, clipped to the image, whether or not another shape covers part of
it.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 44, 46),
    "green": (46, 164, 78),
    "blue": (42, 92, 214),
    "yellow": (240, 204, 48),
}
"""Colour -> its RGB, from which the tint of a shape is drawn."""
CATEGORIES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""Names of all categories, such as "red circle"."""
SIZES = ((128, 128), (160, 128), (128, 160))
"""Width and height of a scene in pixels; three quarters of the scenes have the first."""
MAX_IOU = 0.3
"""Highest IoU of two boxes of a scene."""
MAX_COVER = 0.45
"""Highest share of a box that another box may overlap."""


class DrawnObject(NamedTuple):
    """One box of a scene."""

    box: tuple[float, float, float, float]
    """Corners x1, y1, x2, y2 in pixels, clipped to the image."""
    label: str
    """Name of its category: one of `CATEGORIES`."""
    crowd: bool
    """True for the box around a cluster of tiny shapes of one category."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A drawn image and what is on it."""

    image: Image.Image
    """The image as RGB."""
    objects: tuple[DrawnObject, ...]
    """Boxes in drawing order: later ones lie on top."""
    segmentations: tuple[Any, ...]
    """One an object, in COCO's forms: polygons, or the uncompressed run lengths of a crowd."""


@dataclass(frozen=True, kw_only=True)
class _Outline:
    """A shape as its corners, clockwise; a circle as its centre and radius, in pixels."""

    label: str
    centre: tuple[float, float]
    radius: float
    corners: np.ndarray  # float64[K, 2]; empty for a circle

    @property
    def box(self) -> np.ndarray:
        """Box of the shape, float64[4] xyxy in pixels, not clipped."""
        if len(self.corners):
            return np.concatenate([self.corners.min(0), self.corners.max(0)])
        x, y = self.centre
        return np.array([x - self.radius, y - self.radius, x + self.radius, y + self.radius])

    def inside_distance(self, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        """Return the pixels from the edge, positive inside.

        Args:
            xs: float64[1, W], horizontal places of pixel centres.
            ys: float64[H, 1], vertical places of pixel centres.

        Returns:
            float64[H, W].
        """
        if not len(self.corners):
            return self.radius - np.hypot(xs - self.centre[0], ys - self.centre[1])
        edges = np.roll(self.corners, -1, axis=0) - self.corners
        edges /= np.linalg.norm(edges, axis=1, keepdims=True)
        planes = [
            ex * (ys - cy) - ey * (xs - cx)
            for (ex, ey), (cx, cy) in zip(edges, self.corners, strict=True)
        ]
        return np.minimum.reduce(planes)

    def polygon(self) -> list[float]:
        """Return the corners as COCO's flat list x1, y1, x2, y2, ...; of a circle 24 of them."""
        corners = self.corners
        if not len(corners):
            turns = np.linspace(0, 2 * math.pi, 24, endpoint=False)
            corners = np.stack([np.cos(turns), np.sin(turns)], 1) * self.radius + self.centre
        return [round(float(value), 2) for value in corners.reshape(-1)]


def draw_scene(seed: int | tuple[int, ...], *, empty: float = 0.06, crowd: float = 0.06) -> Scene:
    """Draw the scene of a seed.

    Args:
        seed: Whatever `numpy.random.default_rng` takes.
        empty: Probability of a scene without any shape.
        crowd: Probability of a scene with a crowd region.
    """
    rng = np.random.default_rng(seed)
    width, height = SIZES[rng.choice(3, p=(0.75, 0.125, 0.125))]
    canvas = _background(rng, width, height)
    kind = rng.random()
    cluster = _place_cluster(rng, width, height) if empty <= kind < empty + crowd else []
    taken = [_clip(_union(cluster), width, height)] if cluster else []
    shapes = [] if kind < empty else _place_shapes(rng, width, height, taken)
    for outline in shapes + cluster:
        _paint(rng, canvas, outline)
    objects = [DrawnObject(_clip(o.box, width, height), o.label, False) for o in shapes]
    segmentations: list[Any] = [[o.polygon()] for o in shapes]
    if cluster:
        objects.append(DrawnObject(taken[0], cluster[0].label, True))
        segmentations.append(_run_lengths(cluster, width, height))
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(2, 7))
    canvas *= np.float32(rng.uniform(0.9, 1.08))
    pixels = canvas.clip(0, 255).astype(np.uint8)
    return Scene(
        image=Image.fromarray(pixels), objects=tuple(objects), segmentations=tuple(segmentations)
    )


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return float32[H, W, 3]: muted colour, soft blotches, a pattern, lines and marks."""
    base = (rng.uniform(70, 185) + rng.uniform(-24, 24, 3)).astype(np.float32)
    grid = rng.integers(0, 256, (rng.integers(3, 9), rng.integers(3, 9), 3), dtype=np.uint8)
    blotches = np.asarray(
        Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC), np.float32
    )
    canvas = base + (blotches.mean(2, keepdims=True) - 128) * 0.3 + (blotches - 128) * 0.1
    xs, ys = (
        np.arange(width, dtype=np.float32)[None, :],
        np.arange(height, dtype=np.float32)[:, None],
    )
    angle, period = rng.uniform(0, math.pi), rng.uniform(6, 30)
    along = (xs * math.cos(angle) + ys * math.sin(angle)) * (2 * math.pi / period)
    across = (ys * math.cos(angle) - xs * math.sin(angle)) * (2 * math.pi / period)
    pattern = (
        np.zeros_like,
        np.sin,
        lambda waves: np.sign(np.sin(waves)),
        lambda waves: np.sign(np.sin(waves) * np.sin(across)),
        lambda waves: np.sin(waves + 2 * np.sin(across * 0.5)),
    )[rng.integers(5)](along)
    canvas += pattern[..., None] * np.float32(rng.uniform(4, 16))
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    _clutter(rng, ImageDraw.Draw(image), width, height)
    return np.asarray(image, np.float32)


def _clutter(rng: np.random.Generator, draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
    """Draw grey lines, arcs, crosses and zigzags, which no category names."""

    def grey() -> tuple[int, int, int]:
        red, green, blue = np.clip(rng.uniform(30, 225) + rng.uniform(-16, 16, 3), 0, 255).astype(
            int
        )
        return int(red), int(green), int(blue)

    def point() -> tuple[float, float]:
        return rng.uniform(-10, width + 10), rng.uniform(-10, height + 10)

    for _ in range(rng.integers(2, 9)):
        draw.line([point(), point()], fill=grey(), width=int(rng.integers(1, 3)))
    for _ in range(rng.integers(0, 4)):
        (x, y), size = point(), rng.uniform(5, 16)
        mark = rng.integers(3)
        if mark == 0:
            start, end = sorted(rng.uniform(0, 360, 2))
            draw.arc([x - size, y - size, x + size, y + size], start, end, fill=grey(), width=2)
        elif mark == 1:
            draw.line([(x - size, y), (x + size, y)], grey(), 3)
            draw.line([(x, y - size), (x, y + size)], grey(), 3)
        else:
            draw.line([(x + d * size / 2, y + (d % 2) * size / 2) for d in range(-2, 3)], grey(), 2)


def _outline(rng: np.random.Generator, label: str, x: float, y: float, radius: float) -> _Outline:
    """Return a shape of a category at a place, turned at random."""
    shape = label.split()[1]
    if shape == "circle":
        return _Outline(label=label, centre=(x, y), radius=radius, corners=np.zeros((0, 2)))
    num_corners, start, spread = (
        (4, math.pi / 4, 0.22) if shape == "square" else (3, -math.pi / 2, 0.35)
    )
    turns = (
        start + rng.uniform(-spread, spread) + np.arange(num_corners) * (2 * math.pi / num_corners)
    )
    reach = radius * (1.15 if shape == "square" else 1.2)  # about the area of the circle
    corners = np.stack([x + reach * np.cos(turns), y + reach * np.sin(turns)], 1)
    return _Outline(label=label, centre=(x, y), radius=radius, corners=corners)


def _place_shapes(
    rng: np.random.Generator,
    width: int,
    height: int,
    taken: list[tuple[float, float, float, float]],
) -> list[_Outline]:
    """Return 1 to 8 shapes, large ones first, that keep `MAX_IOU` and `MAX_COVER`.

    Args:
        rng: Source of the draws.
        width: Width of the scene in pixels.
        height: Height of the scene in pixels.
        taken: Boxes that no shape may touch.
    """
    side = min(width, height)
    wanted = int(rng.choice(np.arange(1, 9), p=(0.1, 0.14, 0.17, 0.17, 0.14, 0.12, 0.09, 0.07)))
    # few categories a scene: repeats make counting worth asking
    palette = rng.choice(CATEGORIES, size=rng.integers(2, 6), replace=False)
    radii = np.where(
        rng.random(wanted) < 0.18, rng.uniform(0.05, 0.07, wanted), rng.uniform(0.07, 0.2, wanted)
    )
    shapes: list[_Outline] = []
    boxes = list(taken)
    for radius in sorted(radii * side, reverse=True):
        # an eighth of the shapes may leave the image: their boxes are clipped
        margin = radius * (0.4 if rng.random() < 0.12 else 1.25)
        for _ in range(25):  # a shape that finds no place is left out
            x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
            outline = _outline(rng, str(rng.choice(palette)), x, y, radius)
            box = _clip(outline.box, width, height)
            if all(_compatible(box, other, near=other not in taken) for other in boxes):
                shapes.append(outline)
                boxes.append(box)
                break
    return shapes


def _place_cluster(rng: np.random.Generator, width: int, height: int) -> list[_Outline]:
    """Return 7 to 14 tiny shapes of one category, packed into one place."""
    side, label = min(width, height), str(rng.choice(CATEGORIES))
    span = rng.uniform(0.14, 0.2) * side
    x, y = rng.uniform(span + 4, width - span - 4), rng.uniform(span + 4, height - span - 4)
    places = rng.uniform(-span, span, (int(rng.integers(7, 15)), 2))
    return [
        _outline(rng, label, x + dx, y + dy, rng.uniform(0.024, 0.036) * side) for dx, dy in places
    ]


def _compatible(box: tuple[float, ...], other: tuple[float, ...], *, near: bool) -> bool:
    """Return whether two boxes may be on one scene.

    Args:
        box: One box, xyxy in pixels.
        other: The other box, xyxy in pixels.
        near: Whether they may overlap at all.
    """
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    if wide <= 0 or high <= 0:
        return True
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    shared = wide * high
    return near and shared / (sum(areas) - shared) <= MAX_IOU and shared / min(areas) <= MAX_COVER


def _paint(rng: np.random.Generator, canvas: np.ndarray, outline: _Outline) -> None:
    """Blend the shape and its soft shadow into canvas float32[H, W, 3], with antialiased edges."""
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = outline.box
    left, top = max(int(x1) - 4, 0), max(int(y1) - 4, 0)
    right, bottom = min(int(x2) + 8, width), min(int(y2) + 8, height)
    xs = np.arange(left, right)[None, :] + 0.5
    ys = np.arange(top, bottom)[:, None] + 0.5
    patch = canvas[top:bottom, left:right]
    shadow = np.clip(outline.inside_distance(xs - 2.0, ys - 2.5) * 0.35 + 0.6, 0, 1)
    patch *= (1 - 0.35 * shadow)[..., None]
    depth = outline.inside_distance(xs, ys)
    tint = np.array(COLOURS[outline.label.split()[0]]) + rng.uniform(-16, 16, 3)
    slope = rng.uniform(-0.22, 0.22, 2)
    light = (
        1
        + ((xs - outline.centre[0]) * slope[0] + (ys - outline.centre[1]) * slope[1])
        / outline.radius
    )
    rim = np.clip(depth / max(outline.radius * 0.14, 1.0), 0, 1) * 0.28 + 0.72
    alpha = np.clip(depth + 0.5, 0, 1)[..., None]
    patch *= 1 - alpha
    patch += alpha * np.clip(tint * (light * rim)[..., None], 0, 255)


def _union(outlines: list[_Outline]) -> np.ndarray:
    """Return the box around some shapes, float64[4] xyxy in pixels."""
    boxes = np.stack([outline.box for outline in outlines])
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])


def _clip(box: np.ndarray, width: int, height: int) -> tuple[float, float, float, float]:
    """Return a box clipped to the image, to a hundredth of a pixel as COCO's files have it."""
    x1, x2 = (round(float(v), 2) for v in np.clip(box[[0, 2]], 0, width))
    y1, y2 = (round(float(v), 2) for v in np.clip(box[[1, 3]], 0, height))
    return x1, y1, x2, y2


def _run_lengths(outlines: list[_Outline], width: int, height: int) -> dict[str, Any]:
    """Return the shapes' joint mask in COCO's uncompressed form: by columns, zeros first."""
    xs, ys = np.arange(width)[None, :] + 0.5, np.arange(height)[:, None] + 0.5
    mask = np.logical_or.reduce([o.inside_distance(xs, ys) > 0 for o in outlines]).ravel(order="F")
    changes = np.flatnonzero(np.diff(mask)) + 1
    edges = np.concatenate([[0], changes, [mask.size]]).astype(int)
    counts = np.diff(edges).tolist()
    return {"counts": [0, *counts] if mask[0] else counts, "size": [height, width]}
