"""Boxes with readable tags drawn on images of any size, and images as text to embed in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageColor, ImageDraw, ImageFont

from pipelines.example_image import view
from pipelines.schemas import RegionExample

PALETTE = (
    "#d7263d", "#1f6fe0", "#238823", "#c25a00", "#8e24aa", "#00838f",
    "#c2185b", "#7a5c00", "#4b5bdb", "#558b00", "#c400c4", "#a8442a",
)  # fmt: skip
"""Colours of regions by index, dark enough for white text on them."""
RIGHT, WRONG, MISSED, CROWD = "#15803d", "#c81e1e", "#c2570c", "#6b7280"
"""Colours of judged boxes: chosen rightly, chosen wrongly, true but not chosen, crowd."""
OFFERED = "#ffffff"
"""Colour of regions that were offered and not chosen, drawn faint."""
LONG_SIDE = 560
"""Long side of a drawn image in px: a 128 px scene grows, a 640 px photo shrinks a little."""
_TAG_PX = 13
_PAD = 3


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One box to draw."""

    box: Sequence[float]
    """Corners xyxy, in pixels of the original image."""
    tag: str = ""
    """Short text beside the box; empty for none."""
    colour: str = PALETTE[0]
    """Colour of box and tag, as #rrggbb."""
    dashed: bool = False
    """Whether the outline is dashed: a true box, as opposed to a proposed one."""
    faint: bool = False
    """Whether the box is thin and half transparent: offered, not chosen."""


def region_colour(index: int) -> str:
    """Return the colour of a region, the same on the image and in the conversation below it."""
    return PALETTE[index % len(PALETTE)]


def draw_example(example: RegionExample, data: bytes, marks: Iterable[Mark]) -> Image.Image:
    """Draw the image of an example, or the window into it that the model sees.

    Args:
        example: The example.
        data: Bytes of its image; a conversation without one gives an empty image that says so.
        marks: What to draw, in pixels of the original image.
    """
    if not data:
        blank = Image.new("RGB", (LONG_SIDE, LONG_SIDE // 4), "#e9e9e9")
        font = ImageFont.load_default(size=_TAG_PX * 2)
        ImageDraw.Draw(blank).text(
            (blank.width / 2, blank.height / 2),
            "no image",
            fill="#777777",
            font=font,
            anchor="mm",
        )
        return blank
    left, top = example.window[:2] if example.window else (0, 0)
    moved = (
        replace(m, box=[m.box[0] - left, m.box[1] - top, m.box[2] - left, m.box[3] - top])
        for m in marks
    )
    seen, _ = view(example, data)
    return draw_marks(seen or Image.new("RGB", (1, 1)), moved)


def draw_marks(
    image: Image.Image, marks: Iterable[Mark], *, long_side: int = LONG_SIDE
) -> Image.Image:
    """Return a copy of the image, scaled, with marks on it.

    Faint marks lie below, large boxes below small ones, tags above all boxes and, where there is
    room, apart.

    Args:
        image: The image; it is not changed.
        marks: What to draw, in pixels of the image.
        long_side: Long side of the copy in px.
    """
    factor = long_side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    canvas = image.convert("RGB").resize(size, Image.Resampling.BICUBIC).convert("RGBA")
    layer = Image.new("RGBA", size)  # drawn apart, since ImageDraw overwrites instead of blending
    pen = ImageDraw.Draw(layer)
    # Half a pixel more is no loss on a page, and edges on whole pixels are crisp.
    scaled = [(mark, [round(edge * factor) for edge in mark.box]) for mark in marks]
    scaled.sort(key=lambda item: (not item[0].faint, -_area(item[1])))
    for mark, box in scaled:
        _outline(pen, box, mark)
    taken: list[tuple[int, int, int, int]] = []
    font = ImageFont.load_default(size=_TAG_PX)
    # Small boxes choose a place for their tags first: they have the least room.
    for mark, box in reversed(scaled):
        if mark.tag:
            place = _place(pen, mark.tag, font, box, size, taken)
            taken.append(place)
            pen.rectangle(place, fill=_rgba(mark.colour, 190 if mark.faint else 255))
            pen.text(
                (place[0] + _PAD, (place[1] + place[3]) / 2),
                mark.tag,
                fill="white",
                font=font,
                anchor="lm",
            )
    return Image.alpha_composite(canvas, layer).convert("RGB")


def jpeg_uri(image: Image.Image) -> str:
    """Return an image as a JPEG data URI."""
    sink = io.BytesIO()
    image.convert("RGB").save(sink, format="JPEG", quality=85)
    return data_uri(sink.getvalue(), "image/jpeg")


def data_uri(data: bytes, media_type: str) -> str:
    """Return bytes of a media type, such as "image/png", as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _rgba(colour: str, alpha: int) -> tuple[int, ...]:
    return (*ImageColor.getrgb(colour)[:3], alpha)


def _outline(pen: ImageDraw.ImageDraw, box: Sequence[int], mark: Mark) -> None:
    """Draw the outline of a box that is in pixels of the canvas."""
    left, top, right, bottom = box
    right, bottom = max(left, right - 1), max(top, bottom - 1)
    if mark.faint:
        pen.rectangle((left, top, right, bottom), outline=_rgba(mark.colour, 150), width=1)
        return
    # A white halo keeps a colour visible on its own kind.
    halo = (max(0, left - 1), max(0, top - 1), right + 1, bottom + 1)
    pen.rectangle(halo, outline=(255, 255, 255, 150), width=4)
    if not mark.dashed:
        pen.rectangle((left, top, right, bottom), outline=_rgba(mark.colour, 255), width=2)
        return
    dash, gap = 7, 5
    for start in range(left, right, dash + gap):
        stop = min(start + dash, right)
        pen.line((start, top, stop, top), fill=mark.colour, width=2)
        pen.line((start, bottom, stop, bottom), fill=mark.colour, width=2)
    for start in range(top, bottom, dash + gap):
        stop = min(start + dash, bottom)
        pen.line((left, start, left, stop), fill=mark.colour, width=2)
        pen.line((right, start, right, stop), fill=mark.colour, width=2)


def _place(
    pen: ImageDraw.ImageDraw,
    tag: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    box: Sequence[int],
    size: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Choose where a tag goes: the first free corner, else the one with the least overlap."""
    width, height = round(pen.textlength(tag, font=font)) + 2 * _PAD, _TAG_PX + _PAD
    left, top, right, bottom = box
    # Outside the box before inside it, so that what the box shows stays visible.
    corners = [
        (left, top - height), (right - width, top - height),
        (left, bottom), (right - width, bottom),
        (left - width, top), (right, top),
        (left, top), (right - width, top),
        (left, bottom - height), (right - width, bottom - height),
        (left - width, bottom - height), (right, bottom - height),
    ]  # fmt: skip
    best, least = (0, 0, 0, 0), float("inf")
    for wanted_x, wanted_y in corners:
        x = min(max(wanted_x, 0), size[0] - width)
        y = min(max(wanted_y, 0), size[1] - height)
        place = (x, y, x + width, y + height)
        hidden = sum(_shared(place, other) for other in taken)
        if hidden < least:
            best, least = place, hidden
    return best


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the area in px that two boxes share."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
