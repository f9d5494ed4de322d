"""Which benchmarks' images the training shards of a recipe leave out, and what that rests on."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from dataset_builders import DataFolders, DatasetSpec
from dataset_builders.benchmark_leakage import (
    TWINS,
    BenchmarkImages,
    Key,
    benchmark_lists,
    excluded_images,
)
from jobs.command.suggestions import unknown
from pipelines.errors import SettingError
from pipelines.input_digests import excluded_digest

TWIN_SPACES = frozenset({"coco", "vg"})
"""Key spaces whose images are partly the same."""


class Exclusion:
    """The choice of a recipe, ``exclude``: "found", "none", or names of lists with commas."""

    def __init__(self, chosen: str, folders: DataFolders, digest_cache: str | Path) -> None:
        """Read no list yet.

        Args:
            chosen: "found", "none", or names of lists with commas.
            folders: Where the datasets lie.
            digest_cache: Folder that remembers digests of files.

        Raises:
            SettingError: For an unknown name, or a named list whose files are not there.
        """
        self._folders, self._cache = folders, digest_cache
        self._lists = benchmark_lists(folders)
        self.not_found: dict[str, str] = {}
        if chosen == "found":
            self.not_found = {
                name: missing
                for name, item in self._lists.items()
                if (missing := item.missing(folders))
            }
            self._names = tuple(name for name in self._lists if name not in self.not_found)
        else:
            self._names = () if chosen == "none" else tuple(chosen.split(","))
        for name in self._names:
            if name not in self._lists:
                message = unknown(
                    "list", name, self._lists, lists="exclude", more="or found, or none"
                )
                raise SettingError(f"exclude={chosen}: {message}")
            if missing := self._lists[name].missing(folders):
                raise SettingError(f"exclude={chosen}: {name} needs {missing}, which is not there")

    def names_for(self, spec: DatasetSpec) -> tuple[str, ...]:
        """Return the lists that can hold images of a dataset."""
        return tuple(name for name in self._names if _concerns(self._lists[name], spec))

    def notes_for(self, specs: Iterable[DatasetSpec]) -> list[str]:
        """Return lines for people: which lists concern the datasets but were not found."""
        specs = list(specs)
        names = [
            name
            for name in self.not_found
            if any(_concerns(self._lists[name], spec) for spec in specs)
        ]
        lines = []
        if names:
            lines.append(
                f"the images of {', '.join(names)} are NOT left out of training: their lists are "
                "not there (fo1 list exclude says where they belong)"
            )
        if (
            self._names
            and not self._folders.matches(TWINS)
            and any("vg" in _own(spec) for spec in specs)
        ):
            lines.append(
                f"{TWINS} not found, so COCO's twins among Visual Genome's images are NOT left out"
            )
        return lines

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        """Return the identity of the images of each list."""
        return {name: excluded_digest(name, self._folders, self._cache) for name in names}

    @lru_cache(4)  # noqa: B019 - lives as long as the chain of one command
    def images(self, names: tuple[str, ...]) -> dict[Key, str]:
        """Return every image of the lists -> the benchmark."""
        return excluded_images(self._folders, names)


def _own(spec: DatasetSpec) -> frozenset[str]:
    """Return the key spaces of the images of a dataset."""
    return frozenset(s.key_space or s.name for s in (*spec.images, *spec.optional_images))


def _concerns(item: BenchmarkImages, spec: DatasetSpec) -> bool:
    spaces = _own(spec) | (TWIN_SPACES if _own(spec) & TWIN_SPACES else frozenset())
    return not item.spaces or not spaces.isdisjoint(item.spaces)
