"""What families share whose vision tower sees squares of one side: an image as one, or as tiles."""

from abc import ABC
from collections.abc import Sequence
from typing import Any

import torch
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    unpad_image,
)

from fo1_model.errors import SettingError
from fo1_model.vlms.family import Grid, VLMFamily, square_side


class SquareTower(VLMFamily, ABC):
    """A family with such a tower; regions are pooled from the square that shows the whole image."""

    _side: int
    """Side of a square in pixels."""
    _cells: int
    """Side of its map in patches."""

    def read_sizes(self) -> None:
        """Set the sizes that ``config`` says.

        Raises:
            SettingError: The tower's images or patches are not square.
        """
        config: Any = self.config
        text, vision = config.text_config, config.vision_config
        self.hidden_size = text.hidden_size
        self.vocabulary_rows = text.vocab_size
        self.tied = config.tie_word_embeddings
        self.primary_dim = vision.hidden_size
        self.patch_size = square_side(vision.patch_size, "vision_config.patch_size")
        self._side = square_side(vision.image_size, "vision_config.image_size")
        self._cells = self._side // self.patch_size

    def input_size(self, grid: Grid) -> tuple[int, int]:  # noqa: ARG002
        """Return the size of the square that shows the whole image."""
        return self._side, self._side

    def check_pinpoints(self, pinpoints: Sequence[Sequence[int]]) -> None:
        """Refuse arrangements of tiles ("anyres") that are no multiples of a square.

        Args:
            pinpoints: (height, width) of each in pixels, ``image_grid_pinpoints``.

        Raises:
            SettingError: Naming the first.
        """
        for point in pinpoints:
            if any(length % self._side for length in point):
                raise SettingError(
                    f"image_grid_pinpoints has {point}, but tiles are cut at multiples of "
                    f"vision_config.image_size={self._side}"
                )

    def tiled_cells(self, grid: Grid, pinpoints: Sequence[Sequence[int]]) -> tuple[int, int]:
        """Return (rows, columns) of the map of all tiles of an image, without their padding.

        Args:
            grid: (height, width) of the image in pixels.
            pinpoints: As for `check_pinpoints`.
        """
        rows, columns = get_anyres_image_grid_shape(grid, pinpoints, self._side)
        tiled = torch.empty(0, rows * self._cells, columns * self._cells)
        height, width = unpad_image(tiled, grid).shape[1:]
        return height, width
