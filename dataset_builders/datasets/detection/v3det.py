"""V3Det: 13,204 categories in a tree (https://github.com/V3Det/V3Det, README.md).

Files: COCO's instances JSON, the category tree (`v3det_tree`), and images in one folder a category.
Every image becomes the questions of `tasks.detection`. Traps:

- `file_name` starts with ``images/``, which is the folder itself.
- Names are not unique: categories of one name are one label.
- No image was looked over for all categories, so a name is called absent only when it stands in
  another part of the tree than everything annotated. Of those only a few hundred are looked at for
  an image.
"""

import random
from collections.abc import Iterator, Mapping
from typing import Any

from dataset_builders.box_checks import get
from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.detection.v3det_tree import CategoryTree, read_tree
from dataset_builders.image_annotations import ImageFacts
from dataset_builders.names import prompt_names
from dataset_builders.readers.coco_files import CocoFile
from dataset_builders.readers.coco_images import CocoForm, coco_source
from dataset_builders.records import BadRecord
from dataset_builders.seeds import seed_of
from dataset_builders.spec import BuildOptions, DatasetSpec, Item
from dataset_builders.tasks import detection
from dataset_builders.tasks.absence import LabelStatistics, absent_fields

FILE = "v3det/annotations/v3det_2023_v1_train.json"
TREE = "v3det/annotations/v3det_2023_v1_category_tree.json"

TOGETHER, COUSINS, FREQUENT, UNIFORM = 24, 24, 64, 64
"""How many names are looked at for an image. ours

For each present name: those that come oftenest with it, and those nearest to it in the tree.
Besides: the most frequent of all, and a draw from all.
"""
MAX_ASKED_PRESENT = 8
"""How many present names such names are sought for. ours"""


def _name(category: Mapping[str, Any]) -> str:
    name = get(category, "name")
    return " ".join(name.split()) if isinstance(name, str) else name


def _uri(image: Mapping[str, Any]) -> str:
    name = get(image, "file_name")
    if isinstance(name, str) and not name.startswith("images/"):
        raise BadRecord("malformed", f"file_name {name[:120]!r} does not start with images/")
    return name if not isinstance(name, str) else name.removeprefix("images/")


FORM = CocoForm(name_of=_name, uri_of=_uri)
IMAGES = coco_source("v3det_train", file=FILE, folder="v3det/images", num_buckets=256, form=FORM)


class Candidates:
    """The names, of all 13,204, that an image may be asked for as absent.

    They are looked up in lists made once, rather than searched for on each image.
    """

    def __init__(
        self, names: tuple[str, ...], tree: CategoryTree, statistics: LabelStatistics
    ) -> None:
        self._tree, self._statistics = tree, statistics
        self._names = names
        order = sorted(names, key=lambda name: (-statistics.images[name], name))
        self._frequent = order[:FREQUENT]
        self._together: dict[str, list[str]] = {}
        self._cousins: dict[str, tuple[str, ...]] = {}

    def of(self, present: set[str], rng: random.Random) -> list[str]:
        """Return names that stand in another part of the tree than all the present ones, sorted.

        Args:
            present: Labels that are on the image or in doubt.
            rng: Draws among the many names that would do.
        """
        if len(present) >= len(self._names):  # nothing is left that could be absent
            return []
        found = {*self._frequent, *rng.sample(self._names, min(UNIFORM, len(self._names)))}
        shown = sorted(present)
        for name in rng.sample(shown, min(MAX_ASKED_PRESENT, len(shown))):
            found.update(self._near(name, rng))
        near = set().union(*(self._tree.related(name) for name in present)) if present else set()
        return sorted(name for name in found - near if name in self._tree.nodes)

    def _near(self, name: str, rng: random.Random) -> list[str]:
        if name not in self._together:
            pairs: Mapping[str, int] = self._statistics.pairs.get(name, {})
            self._together[name] = sorted(pairs, key=lambda other: (-pairs[other], other))[
                :TOGETHER
            ]
            self._cousins[name] = self._tree.cousins(name)
        cousins = self._cousins[name]
        return [*self._together[name], *rng.sample(cousins, min(COUSINS, len(cousins)))]


def build(folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
    """Yield the samples of V3Det's training split, its rejects, and the ledger last.

    Raises:
        SettingError: A file is not of its form, or the tree is of the wrong release.
    """

    def absent_by(coco: CocoFile, statistics: LabelStatistics) -> detection.AbsentOf:
        stored = {number: str(get(coco.records[number], "name")) for number in coco.categories}
        tree = read_tree(folders.path(TREE), coco.categories, stored)
        candidates = Candidates(coco.names, tree, statistics)
        nearness = tree.nearness()

        def absent_of(facts: ImageFacts) -> Mapping[str, Any]:
            present = {item.label for item in facts.objects} | facts.uncertain
            if not present <= tree.nodes.keys():
                # Something on the image has no place in the tree: nothing is known to be far off.
                return {}
            seed = seed_of(options.seed, "v3det absent", facts.ref.image_id, *(facts.window or ()))
            names = candidates.of(present, random.Random(seed))
            return absent_fields(names, present, statistics, regime="tree", nearness=nearness)

        return absent_of

    return detection.build(
        folders,
        options,
        dataset="v3det",
        file=FILE,
        folder="v3det/images",
        source=IMAGES,
        form=FORM,
        absent_by=absent_by,
        spelled_by=lambda coco: {
            name: (shown,) for name, shown in prompt_names(coco.names).items()
        },
    )


DATASETS = (
    DatasetSpec(
        name="v3det",
        images=(IMAGES,),
        build=build,
        files=(FILE, TREE),
        tasks=detection.ALL_TASKS,
        stages=(1, 2),
        licence="annotations CC BY 4.0; images under Flickr's terms",
        source="https://github.com/V3Det/V3Det",
        layout=(
            f"{FILE}   COCO instances JSON\n{TREE}   the category tree\n"
            "v3det/images/NODE/   its images, one folder a category"
        ),
        num_samples=1_250_000,
    ),
)
