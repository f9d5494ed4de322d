"""One question about one image: the answer of a checkpoint, and the annotated image."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fo1_model.detectors.configs import Leaf, leaves, name_of
from jobs.checkpoints.find import Checkpoint, find_checkpoint, model_uri
from jobs.checkpoints.lineage import check_found, detector_for
from jobs.command.flags import runtime_of
from jobs.recipes.arguments import parse_arguments
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.proposals.detector_inputs import find_weights, local_checkpoints
from pipelines.storage import local_folder

if TYPE_CHECKING:
    import numpy as np

    from fo1_model.detectors import Detector


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """Arguments of ``fo1 predict``."""

    checkpoint: str
    """Run by name or NAME/FINGERPRINT; folder, URI or hub name of a model, ours or released."""
    image: str
    """File of the image."""
    query: str
    """Names with semicolons between them, or a whole question that ends in ? or a full stop."""
    question: str | None = None
    """Wording that asks for the names of query=, with {} in their place; none: the release's."""
    detector: str | None = None
    """Detector of the regions; none: the one that the run was trained with."""
    proposals: int | None = None
    """Most boxes; none: as the run was trained."""
    boxes: str | None = None
    """Boxes x1,y1,x2,y2;... in pixels of the image, instead of the detector's."""
    out: str = "answer.png"
    """File of the annotated image."""


def predict(words: list[str], flags: Namespace) -> None:
    """Ask a checkpoint one question about one image; print the answer, write the annotated image.

    Args:
        words: `PredictArguments` as ``name=value`` words.
        flags: Flags of the command.

    Raises:
        SettingError: For words that cannot be, or a detector that cannot look at a new image.
    """
    from dataset_builders.images import BadImage, decode_image
    from fo1_model.checkpoint import load_model
    from pipelines.reports.answer_image import predict_image

    given = PredictArguments(**parse_arguments(PredictArguments, words))
    runtime = runtime_of(flags)
    found = find_checkpoint(given.checkpoint, runtime)
    if not Path(given.image).is_file():
        raise SettingError(f"image={given.image}: there is no such file")
    try:
        image = decode_image(Path(given.image).read_bytes())
    except BadImage as error:
        raise SettingError(f"image={given.image}: {error}") from error
    boxes = None if given.boxes is None else _boxes(given.boxes)
    if boxes is not None and (given.detector or given.proposals is not None):
        raise SettingError("boxes: give either boxes, or detector and proposals")
    question = _question(given)
    detector = _detector(found, given, runtime) if boxes is None else None
    with local_folder(model_uri(found)) as folder:
        model, processor = load_model(folder)
    answer = predict_image(model, processor, image, question, boxes=boxes, detector=detector)
    answer.annotated.save(given.out)
    print(f"question: {question}\nanswer:   {answer.answer.text}")
    for region in answer.answer.parsed.regions:
        box = ", ".join(f"{value:.1f}" for value in answer.boxes[region])
        print(f"  region {region}: [{box}]")
    print(f"image:    {given.out}")


def _question(given: PredictArguments) -> str:
    """Return the whole question that the words mean.

    Raises:
        SettingError: For a wording that has no place for names, or names that cannot be asked for.
    """
    from pipelines.reports.answer_image import question_for

    if given.question is None and given.query.endswith(("?", ".")):
        return given.query
    names = given.query.split(";")
    if given.question is None:
        return question_for(names)
    if given.question.count("{}") != 1:
        raise SettingError(
            f"question={given.question}: write {{}} once, where the names of query= belong"
        )
    return question_for(names, wording=given.question)


def _detector(found: Checkpoint, given: PredictArguments, runtime: RuntimeConfig) -> "Detector":
    """Return the detector of a checkpoint, or the one named, ready to look at a new image."""
    from fo1_model.detectors import build_detector

    chosen = detector_for(found, given.detector, given.proposals)
    check_found(chosen, given.checkpoint, "say detector=NAME:PATH, or boxes=x1,y1,x2,y2;...")
    for leaf in leaves(chosen.config):
        if leaf.needs in ("objects", "boxes"):
            raise SettingError(
                f"checkpoint={given.checkpoint}: {name_of(leaf)} knows the boxes of its own images "
                "alone; say detector=NAME, or give boxes=x1,y1,x2,y2;..."
            )
    pairs = zip(leaves(chosen.config), chosen.sources, strict=True)
    paths = tuple(_weights(leaf, source, runtime) for leaf, source in pairs)
    with local_checkpoints(paths[0] if len(paths) == 1 else paths) as local:
        return build_detector(chosen.config, local)


def _weights(leaf: Leaf, source: str | None, runtime: RuntimeConfig) -> str | None:
    """Return the path of what a detector's network is read from; None for one without."""
    if source is None:
        return None
    if leaf.needs == "run":
        return model_uri(find_checkpoint(source, runtime, "opn", kind="opn"))
    return find_weights(source)


def _boxes(text: str) -> "np.ndarray":
    """Return boxes float32[N, 4], xyxy in pixels of the image, from the words of the command."""
    import numpy as np

    try:
        boxes = [[float(value) for value in box.split(",")] for box in text.split(";")]
    except ValueError:
        boxes = [[]]
    if any(len(box) != 4 for box in boxes):
        raise SettingError(f"boxes={text}: write x1,y1,x2,y2;x1,y1,x2,y2 in pixels of the image")
    return np.array(boxes, dtype=np.float32).reshape(-1, 4)
