"""Where the folders of datasets lie on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class DataFolders:
    """Names such as ``coco/train2017/000000000009.jpg`` start with a folder's usual name; here they get a
    place.

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
        """Folder that a name starts with: that of "coco" for "coco/train2017/000000000009.jpg"."""
        first = name.partition("/")[0]
        return Path(self.moved.get(first, f"{self.data}/{first}"))

    def path(self, name: str) -> Path:
        """Place of a file or folder. For names that we wrote: those of annotations go through `safe_join`."""
        first, _, rest = name.partition("/")
        return self.root(first) / rest if rest else self.root(first)

    def matches(self, pattern: str) -> list[str]:
        """Names of what a pattern such as ``grit/*.tar`` finds, sorted; without a star, the name itself."""
        if "*" not in pattern:
            return [pattern] if self.path(pattern).exists() else []
        first, _, rest = pattern.partition("/")
        root = self.root(first)
        return sorted(f"{first}/{found.relative_to(root).as_posix()}" for found in root.glob(rest))
