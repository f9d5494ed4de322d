"""Where the folders of datasets lie on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class DataFolders:
    """Places of the folders that names such as ``coco/train2017/000000000009.jpg`` start with.

    Nothing of it is hashed: contents are.
    """

    data: str
    """Folder that holds the datasets' folders under their usual names."""
    moved: Mapping[str, str] = field(default_factory=dict)
    """Usual name -> folder, for those that lie elsewhere."""

    def __post_init__(self) -> None:
        # now, in the process that was given them: workers run in another directory
        object.__setattr__(self, "data", str(Path(self.data).absolute()))
        moved = {name: str(Path(place).absolute()) for name, place in self.moved.items()}
        object.__setattr__(self, "moved", moved)

    def root(self, name: str) -> Path:
        """Return the folder that a name starts with: that of "coco" for "coco/train2017/9.jpg"."""
        first = name.partition("/")[0]
        return Path(self.moved.get(first, f"{self.data}/{first}"))

    def path(self, name: str) -> Path:
        """Return the place of a file or folder.

        Only for names that we wrote: those of annotation files go through `images.safe_join`.
        """
        first, _, rest = name.partition("/")
        return self.root(first) / rest if rest else self.root(first)

    def matches(self, pattern: str) -> list[str]:
        """Return the names of what a pattern such as ``grit/*.tar`` finds, sorted.

        A name without a star stands for itself, if it is there.
        """
        if "*" not in pattern:
            return [pattern] if self.path(pattern).exists() else []
        first, _, rest = pattern.partition("/")
        root = self.root(first)
        return sorted(f"{first}/{found.relative_to(root).as_posix()}" for found in root.glob(rest))
