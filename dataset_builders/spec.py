"""What a dataset and an image source are: where their files lie, what they hold, who reads them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal, TypeVar

from dataset_builders.box_checks import require
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.images import check_uri, read_image_size
from dataset_builders.records import ImageRef, Ledger, Reject, Sample

Item = Sample | Reject | Ledger
"""What a builder yields: samples and rejects in any order, and one ledger last."""


def path_id(uri: str) -> str:
    """Return the path below the dataset's folder, without suffix: "train_images/0004c9478ee"."""
    return PurePosixPath(*PurePosixPath(uri).parts[1:]).with_suffix("").as_posix()


PAPER_REGIONS = 100
"""Most regions of a prompt (paper 3.1)."""


_Found = TypeVar("_Found")


def _readable(items: Iterator[_Found], what: str = "") -> Iterator[_Found]:
    """Yield the items of a reader; name the file when one cannot be opened."""
    try:
        yield from items
    # a folder in place of a file, or one that this user may not read; a full disk is none of these
    except (PermissionError, IsADirectoryError, NotADirectoryError, FileNotFoundError) as error:
        raise SettingError(f"{what}cannot read {error.filename}: {error.strerror}") from error


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What can be chosen about the samples of one image; part of the fingerprint of the samples."""

    seed: int = 0
    """Seed of every choice, which is drawn from (seed, dataset, image id) and depends on nothing
    else."""
    paraphrases: bool = False
    """Whether question wordings are drawn from the table of `prompts`; False asks in the release's
    own words always."""
    single_names: int = 2
    """Number of detection questions an image that ask for one present category; one more asks for
    several at once."""
    counting: int = 2
    """Number of counting questions an image, each about a present category without crowd region."""
    region_names: int = 2
    """Number of questions an image that show a region and ask for its name."""
    absent_counts: float = 0.2
    """Chance that an image with counting questions is also asked to count something that it does
    not show (paper 4.1: 20 % of the detection-related data ask for what is not there)."""
    visual_prompts: int = 1
    """Number of questions an image that show one object and ask for all others of its category."""
    region_texts: int = 8
    """Most descriptions, readings or attributes of regions that an image is asked for."""
    max_objects: int = PAPER_REGIONS
    """Most objects that one question may be about; an image that shows more is cut into windows."""
    everything: bool = field(default=False, metadata={"added": True})
    """Whether an image is also asked for every object with its label, in the release's words for
    that, where annotation is exhaustive and nothing of the image is in doubt."""

    def __post_init__(self) -> None:
        for name in ("single_names", "counting", "region_names", "visual_prompts", "region_texts"):
            if getattr(self, name) < 0:
                raise SettingError(f"BuildOptions.{name}={getattr(self, name)}: want 0 or more")
        if not 0.0 <= self.absent_counts <= 1.0:
            raise SettingError(
                f"BuildOptions.absent_counts={self.absent_counts}: want a chance, 0 to 1"
            )
        if self.max_objects < 1:
            raise SettingError(f"BuildOptions.max_objects={self.max_objects}: want 1 or more")


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """A collection of images, under whose name datasets over the same images share proposals."""

    name: str
    """Name of the proposals, and `Sample.image_source`."""
    num_buckets: int
    """Units of work: a power of two, so that the buckets of one source lie whole in those of
    another. About a thousand images each, since a worker holds the shards of a bucket in memory."""
    list_images: Callable[[DataFolders], Iterator[ImageRef | Reject]]
    """Yields every image; called through `images`."""
    files: tuple[str, ...] = ()
    """Annotation files that `list_images` reads (patterns): with them the list is known. Empty when
    it walks through the folder."""
    image_paths: tuple[str, ...]
    """Folders or container files (patterns) that hold the images."""
    id_of: Callable[[str], str] = path_id
    """Returns the image id of a uri, for images that are referred to by their path."""
    key_space: str = ""
    """Whose ids the image ids are, where several sources share them ("coco", "vg"); empty: its
    own."""

    def __post_init__(self) -> None:
        if self.num_buckets < 1 or self.num_buckets & (self.num_buckets - 1):
            raise ValueError(
                f"image source {self.name}: num_buckets={self.num_buckets} is no power of two"
            )

    def images(self, folders: DataFolders) -> Iterator[ImageRef | Reject]:
        """Return an iterator over every image of the source, or its reject.

        Raises:
            SettingError: A file is missing (raised at once), or not of its form or readable (while
                the images are read).
        """
        what = f"image source {self.name}"
        require(folders, (*self.files, *self.image_paths), what=what)
        return _readable(self.list_images(folders), f"{what}: ")

    def exists(self, folders: DataFolders) -> bool:
        """Return whether all its files are there."""
        return all(folders.matches(name) for name in (*self.files, *self.image_paths))

    def open(self, folders: DataFolders, uri: str) -> ImageRef:
        """Return a reference to an image by its uri, with the size that its header says.

        Raises:
            BadRecord: The reason is unsafe_path, missing_image, image_too_large or
                undecodable_image.
        """
        check_uri(uri)
        return self.ref(self.id_of(uri), uri, *read_image_size(folders, uri))

    def ref(self, image_id: str, uri: str, width: int, height: int) -> ImageRef:
        """Return a reference to one of its images; see `ImageRef` for the arguments."""
        return ImageRef(
            image_source=self.name, image_id=image_id, image_uri=uri, width=width, height=height
        )


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One dataset: where its official files lie, and how they become samples."""

    name: str
    """Name of the samples and shards."""
    images: tuple[ImageSource, ...]
    """Where its images come from; none for text alone."""
    optional_images: tuple[ImageSource, ...] = ()
    """Sources that are used where their files are there: collections that hold only part of its
    images."""
    build: Callable[[DataFolders, BuildOptions], Iterator[Item]]
    """The builder, a generator; called through `samples`."""
    files: tuple[str, ...]
    """Annotation files (names or patterns, from the folder's usual name on); their content is the
    identity of the dataset."""
    containers: tuple[str, ...] = ()
    """Big files that hold annotations and images together; names and sizes are their identity."""
    optional_files: tuple[str, ...] = ()
    """Files that are read where they are there; they count for the identity then."""
    tasks: tuple[str, ...]
    """Tasks of its samples."""
    stages: tuple[int, ...] = ()
    """Stages whose mix has it in Table 10 of the paper; empty for what is ours or evaluation."""
    licence: str
    """Licence of annotations and images."""
    source: str
    """Official place to get it."""
    layout: str
    """The files below the data root, for people: one a line, with what it is."""
    granularity: Literal["coarse", "fine"] = "coarse"
    """What its boxes frame, for training a proposal network: whole objects, or parts of them
    too."""
    match_iou: float = 0.5
    """Least IoU at which a proposal stands for an object; 0.7 for lines of text and documents,
    whose neighbours are close."""
    num_samples: int = 0
    """About how many samples its official files give, as far as published counts say; 0: unknown.
    For `fo1 plan` before anything is built."""
    version: int = 1
    """Version of the builder, raised when its code changes what it yields."""

    @property
    def num_buckets(self) -> int:
        """Units of work of its samples and shards."""
        return max(
            (source.num_buckets for source in (*self.images, *self.optional_images)), default=16
        )

    def sources(self, folders: DataFolders) -> tuple[ImageSource, ...]:
        """Return the image sources that are there: all of `images`, and the optional ones found."""
        return (
            *self.images,
            *(source for source in self.optional_images if source.exists(folders)),
        )

    def samples(self, folders: DataFolders, options: BuildOptions) -> Iterator[Item]:
        """Yield samples and rejects, then one ledger.

        Raises:
            SettingError: A file is missing, cannot be read or is not of its form; the message holds
                the documented layout.
        """
        self.check_files(folders)
        try:
            yield from _readable(self.build(folders, options))
        except SettingError as error:
            raise SettingError(f"dataset {self.name}: {error}\n{self._where(folders)}") from error

    def check_files(self, folders: DataFolders) -> None:
        """Raise unless all its files and folders are there.

        Raises:
            SettingError: One is not; the message names the first such, and holds the documented
                layout.
        """
        paths = [name for source in self.images for name in source.image_paths]
        names = (*self.files, *self.containers, *paths)
        require(folders, names, what=f"dataset {self.name}", layout=self._where(folders))

    def _where(self, folders: DataFolders) -> str:
        """Return the documented layout with the places of its folders on this machine."""
        first = dict.fromkeys(name.partition("/")[0] for name in (*self.files, *self.containers))
        places = ", ".join(f"{name} = {folders.root(name)}" for name in first)
        return f"Its layout is (with {places}):\n{self.layout}"
