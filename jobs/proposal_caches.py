"""``fo1 proposals``: list caches, compare two, make one from a file of boxes."""

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from dataset_builders import DATASETS, DataFolders
from fo1_model.detectors.configs import DetectorConfig, UnionConfig, from_canonical, name_of
from jobs.chain.chain import Chain
from jobs.chain.data_steps import cache_step
from jobs.command.flags import runtime_of
from jobs.command.suggestions import unknown
from jobs.detector_arguments import parse_detector
from jobs.execution import execute, waits
from jobs.find_artifacts import finished
from jobs.recipes.arguments import format_value, parse_arguments
from jobs.recipes.recipe import Recipe
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.proposals.generate import ProposalsConfig
from pipelines.storage import check_writable, filesystem_of, join, write_file


@dataclass(frozen=True, kw_only=True)
class DiffArguments:
    """Arguments of ``fo1 proposals diff A B``."""

    dataset: str | None = None
    """Dataset whose objects are looked for, NAME or NAME/FINGERPRINT; none: all that are built."""
    images: int = 12
    """Images on the page where the two differ most."""


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """Arguments of ``fo1 proposals import FILE``."""

    source: str
    """Image source that the boxes are of, such as drawn_val."""
    proposals: int = 100
    """Most boxes an image."""
    score_min: float = 0.0
    """Score below which boxes are dropped."""
    nms_iou: float | None = None
    """IoU above which the lower of two boxes is dropped; none keeps all."""


def proposals_verb(words: list[str], flags: Namespace) -> None:
    """Do what the words say, see `proposals`."""
    proposals(words, runtime_of(flags))


def proposals(words: list[str], runtime: RuntimeConfig) -> None:
    """Do what the first word says with the others. SettingError for a word not in `ACTIONS`."""
    usage = f"write fo1 proposals {'|'.join(ACTIONS)} ..."
    if not words:
        raise SettingError(f"proposals: {usage}")
    if words[0] not in ACTIONS:
        raise SettingError(f"proposals: {unknown('word', words[0], ACTIONS)}; {usage}")
    ACTIONS[words[0]](words[1:], runtime)


def list_caches(words: list[str], runtime: RuntimeConfig) -> None:
    """Print a line for each finished cache: its counts, and its detector's changed settings."""
    from pipelines.reports.html_page import text_table

    if words:
        raise SettingError(f"proposals list {words[0]}: it takes no words")
    rows = []
    for cache in _caches(runtime.root):
        manifest = cache.manifest()
        ledger = manifest["ledger"]
        images, looked_at = ledger["rows_in"], ledger["rows_out"]
        boxes = f"{ledger.get('boxes', 0) / looked_at:.1f}" if looked_at else "-"
        counts = [str(images), boxes, str(ledger["rejects"])]
        rows.append([*cache.name.split("/"), cache.fingerprint, *counts, _description(manifest)])
    header = [
        "source",
        "detector",
        "fingerprint",
        "images",
        "boxes an image",
        "rejects",
        "settings",
    ]
    print(
        text_table(header, rows)
        if rows
        else f"no finished proposals under {runtime.root}/proposals"
    )


def diff(words: list[str], runtime: RuntimeConfig) -> None:
    """Compare two caches on the labelled datasets over their images: tables and a page."""
    from pipelines.reports.proposals_report import diff_page

    named = [word for word in words if "=" not in word]
    if len(named) != 2:
        raise SettingError(
            "write fo1 proposals diff A B [dataset=NAME] [images=12], A and B SOURCE/DETECTOR"
        )
    settings = [word for word in words if "=" in word]
    given = DiffArguments(**parse_arguments(DiffArguments, settings))
    if given.images < 0:
        raise SettingError(f"images={given.images}: use 0 or more")
    first, second = (find_cache(name, runtime.root) for name in named)
    if first.path == second.path:
        raise SettingError(f"{named[0]} and {named[1]} are the same cache: name two")
    (source, name), (other_source, other_name) = first.name.split("/"), second.name.split("/")
    if source != other_source:
        raise SettingError(
            f"{first.name} and {second.name} are of different images: name two of one source"
        )
    labelled = find_labelled(source, runtime.root, given.dataset)
    folders = DataFolders(runtime.data_folder)
    page = diff_page(first, second, labelled, folders=folders, num_images=given.images)
    if name == other_name:
        name, other_name = (
            f"{cache.name.split('/')[1]}-{cache.fingerprint[:8]}" for cache in (first, second)
        )
    uri = join(runtime.root, "pages", f"proposals-diff-{source}-{name}-{other_name}.html")
    print(f"{page.text}\n\npage: {write_file(uri, page.html.encode())}")


def import_boxes(words: list[str], runtime: RuntimeConfig) -> None:
    """Make a cache of the boxes in a file; a recipe finds it under ``detector=file:FILE``."""
    named = [word for word in words if "=" not in word]
    if len(named) != 1:
        raise SettingError("write fo1 proposals import FILE source=IMAGE_SOURCE [proposals=100]")
    settings = [word for word in words if "=" in word]
    given = ImportArguments(**parse_arguments(ImportArguments, settings))
    selection = {
        "max_boxes": given.proposals,
        "score_min": given.score_min,
        "nms_iou": given.nms_iou,
    }
    chosen = parse_detector(f"file:{named[0]}", selection)
    recipe = Recipe(name="import", detector=chosen.config, detector_sources=chosen.sources)
    check_writable(runtime.root)
    chain = Chain(recipe=recipe, runtime=runtime)
    step = cache_step(chain, ProposalsConfig(image_source=given.source, detector=chosen.config))
    was_done = not waits(step, runtime.force)
    if not was_done:
        execute([step], runtime, anew=[step])
    unmatched = step.artifact.manifest()["ledger"]["unmatched_in_file"]
    if unmatched:
        print(f"note: {unmatched} images of {named[0]} are not among those of {given.source}")
    print(f"{step.artifact.path}{'  (was done)' if was_done else ''}")


ACTIONS: dict[str, Callable[[list[str], RuntimeConfig], None]] = {
    "diff": diff,
    "import": import_boxes,
    "list": list_caches,
}
"""Second word of the command -> what it does with the words after it."""


def find_cache(text: str, root: str) -> Artifact:
    """Return a finished cache by SOURCE/DETECTOR, SOURCE/DETECTOR/FINGERPRINT or its folder.

    How the fingerprint begins is enough.

    Raises:
        SettingError: When there is none, or more than one, naming those that are there.
    """
    if (Path(text) / "manifest.json").is_file():
        path = Path(text).resolve()
        root = path.parents[3].as_posix() if len(path.parents) > 3 else ""
        cache = next((c for c in _caches(root) if c.path == path.as_posix()), None)
        if cache is None:
            raise SettingError(
                f"{text} is no cache of proposals: name ROOT/proposals/SOURCE/DETECTOR/FINGERPRINT"
            )
        return cache
    known = _caches(root)
    source, _, rest = text.partition("/")
    detector, _, key = rest.partition("/")
    found = [c for c in known if c.name == f"{source}/{detector}" and c.fingerprint.startswith(key)]
    if len(found) == 1:
        return found[0]
    if found:
        raise SettingError(f"{text}: there are {len(found)} of them; name one of {_listed(found)}")
    there = _listed(known) or "nothing"
    raise SettingError(
        f"{text}: no finished proposals of that name under {root}/proposals; there is {there}"
    )


def find_labelled(source: str, root: str, dataset: str | None) -> dict[str, Artifact]:
    """Return finished samples of the datasets over the images of an image source, by dataset.

    Args:
        source: Name of the image source.
        root: Folder or URI of the artifacts.
        dataset: Only this one, as NAME or NAME/FINGERPRINT.

    Raises:
        SettingError: When there is none, and when those of one dataset do not show the same
            objects.
    """
    over = [
        s.name
        for s in DATASETS.values()
        if source in {i.name for i in (*s.images, *s.optional_images)}
    ]
    wanted, _, key = (dataset or "").partition("/")
    if wanted and wanted not in over:
        raise SettingError(
            f"dataset={dataset}: not over the images of {source}; {', '.join(over)} are"
        )
    labelled = {}
    for name in [wanted] if wanted else over:
        found = [s for s in finished(root, "samples", name) if s.fingerprint.startswith(key)]
        # Samples that differ in other build options ask other questions about the same objects:
        # any will do.
        truths = {json.dumps(_truth(artifact.manifest()), sort_keys=True) for artifact in found}
        if len(truths) > 1:
            several = ", ".join(f"dataset={s.name}/{s.fingerprint}" for s in found)
            raise SettingError(
                f"samples of {name} do not show the same objects: add one of {several}"
            )
        if found:
            labelled[name] = found[0]
    if not labelled:
        which = f"of {dataset}" if dataset else f"over the images of {source}"
        command = f"fo1 build data mix={wanted or next(iter(over), 'DATASET')}"
        raise SettingError(
            f"no finished samples {which} under {root}/samples; make them with: {command}"
        )
    return labelled


def _truth(manifest: dict[str, Any]) -> list[Any]:
    """Return what the objects of samples follow from; max_objects decides on windows."""
    options = manifest["config"].get("options", {})
    return [manifest["version"], manifest["inputs"], options.get("max_objects")]


def _caches(root: str) -> list[Artifact]:
    """Return every finished cache below a root, by name and fingerprint."""
    return [
        cache
        for source in _folders(join(root, "proposals"))
        for detector in _folders(join(root, "proposals", source))
        for cache in finished(root, "proposals", f"{source}/{detector}")
    ]


def _folders(uri: str) -> list[str]:
    filesystem, path = filesystem_of(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def _listed(caches: list[Artifact]) -> str:
    return ", ".join(f"{cache.name}/{cache.fingerprint}" for cache in caches)


def _description(manifest: dict[str, Any]) -> str:
    """Return the detector's changed settings, then what else the cache was made from."""
    try:
        words = _changes(from_canonical(manifest["config"]["detector"]))
    except ValueError:
        words = ["settings of another version"]
    made_from = {name: key for name, key in manifest["inputs"].items() if name != "images"}
    words += [f"{name} {key[:8]}" for name, key in made_from.items()]
    return ", ".join(words) or "-"


def _changes(config: DetectorConfig) -> list[str]:
    if isinstance(config, UnionConfig):
        words = [
            f"{name_of(member)}: {change}"
            for member in config.members
            for change in _changes(member)
        ]
    else:
        words = [
            f"{field.name}={_word(value)}"
            for field in fields(config)
            if field.name != "selection"
            and (value := getattr(config, field.name)) != _default(field)
        ]
    kept = next(_default(field) for field in fields(config) if field.name == "selection")
    return words + [
        f"{field.name}={_word(value)}"
        for field in fields(config.selection)
        if (value := getattr(config.selection, field.name)) != getattr(kept, field.name)
    ]


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _word(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) and " " in value else format_value(value)
