"""The one size in which both towers see an image."""

from PIL import Image

from fo1_model.errors import SettingError

MIN_SIDE = 28
"""Side in pixels that shorter image sides are stretched to (release)."""


def fit_image(
    image: Image.Image, max_long_side: int, shortest_edge: int | None = None, sample_id: str = ""
) -> Image.Image:
    """Return the image in RGB, both sides at least 28 px, the long side at most ``max_long_side``.

    Sides are truncated to whole pixels after each of the two factors, as the release does; resizing
    is bicubic. Boxes are not touched: every map knows its scale to the original.

    Args:
        image: Any mode and size.
        max_long_side: Longest side of the result, pixels.
        shortest_edge: Short side in pixels that the image is scaled to, up or down, before the long
            one is capped; None for the size it has.
        sample_id: Name of the sample in errors.

    Raises:
        SettingError: For an image without pixels.
    """
    check_image(image, sample_id)
    image = image.convert("RGB")
    size = (max(image.width, MIN_SIDE), max(image.height, MIN_SIDE))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    if shortest_edge is not None:
        size = _scaled(size, shortest_edge / min(size))
    if max(size) > max_long_side:
        size = _scaled(size, max_long_side / max(size))
    size = (max(size[0], MIN_SIDE), max(size[1], MIN_SIDE))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def _scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
    return int(size[0] * factor), int(size[1] * factor)


def check_image(image: Image.Image, sample_id: str) -> None:
    """Raise SettingError, naming the sample, for an image without pixels."""
    if min(image.size) < 1:
        raise SettingError(
            f"sample {sample_id!r} has an image of {image.width}x{image.height} pixels; "
            "each side needs one"
        )
