from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.referring.rexverse import DATASETS
from dataset_builders.errors import SettingError
from dataset_builders.records import Object
from dataset_builders.spec import BuildOptions
from tests.dataset_builders.conftest import collect, text_of
from tests.formats.grounding import annotation_tsv, image_tsv
from tests.formats.scenes import jpeg, rotated, truncated

(SPEC,) = DATASETS
PICTURES = [
    jpeg(Image.new("RGB", (100, 80))),
    rotated(Image.new("RGB", (60, 90))),
    jpeg(Image.new("RGB", (300, 40))),
]
_, STARTS = image_tsv(PICTURES, wrapped=[1])


def write(root: Path, sentences: list[tuple[int, Any]], expressions: list[tuple[int, Any]]) -> None:
    """Write both annotation files, of (byte of the image, JSON), and images in two parts."""
    folder = root / "rexverse"
    folder.mkdir(exist_ok=True)
    content, starts = image_tsv(PICTURES, wrapped=[1])
    cut = starts[1] + 100  # in the middle of the second image
    (folder / "0_500000_image_part_0.tsv").write_bytes(content[:cut])
    (folder / "0_500000_image_part_1.tsv").write_bytes(content[cut:])
    (folder / "0_500000_image.tsv.lineidx").write_text("".join(f"{start}\n" for start in starts))
    for name, rows in (
        ("one_sentence.annotation", sentences),
        ("referring.annotations", expressions),
    ):
        (folder / f"0_500000_{name}.tsv").write_bytes(annotation_tsv(rows)[0])


def build(root: Path, options: BuildOptions | None = None) -> SimpleNamespace:
    return collect(SPEC.samples(DataFolders(str(root)), options or BuildOptions()))


def listed(*boxes: tuple[list[Any], Any]) -> dict[str, Any]:
    """A record as Rex-Omni's: corners."""
    return {"boxes": [{"bbox": bbox, "phrase": phrase} for bbox, phrase in boxes]}


DOG = ([60, 40, 90.5, 75], "A brown dog\n is lying on a bed.")
MAN = ([10, 20, 55, 85], "A man in a coat.")
GOOD = [(STARTS[1], listed(MAN)), (STARTS[0], listed(DOG, ([70, 10, 95, 30], "A lamp is on.")))]


def test_golden_corners_with_phrases(tmp_path: Path) -> None:
    expressions = [
        (
            STARTS[0],
            listed(
                (DOG[0], "the dog"),
                ([70, 10, 95, 30], "the  lamps"),
                ([70, 10, 80, 30], "the lamps"),
            ),
        ),
        (STARTS[2], listed(([200, 1, 290, 39], "the banner"))),
    ]
    write(tmp_path, GOOD, expressions)
    built = build(tmp_path)
    assert built.ledger.used == {"box": 7, "record": 4}
    first, second = str(STARTS[0]), str(STARTS[1])
    assert [
        (s.sample_id, text_of(s.turns[0])[-4:], text_of(s.turns[1])) for s in built.samples
    ] == [
        (f"rexverse/{second}/region_caption/0-0", "[0].", "A man in a coat."),
        (f"rexverse/{first}/region_caption/1-0", "[0].", "A brown dog is lying on a bed."),
        (f"rexverse/{first}/region_caption/1-1", "[1].", "A lamp is on."),
        (f"rexverse/{first}/referring/0-0", "xes.", "the dog[0]"),
        (f"rexverse/{first}/referring/0-1", "xes.", "the lamps[1,2]"),
        (f"rexverse/{STARTS[2]}/referring/1-0", "xes.", "the banner[0]"),
    ]
    man, dog, *_ = built.samples
    assert text_of(dog.turns[0]) == "Provide a brief description for [0]."
    assert dog.objects == (
        Object(box=(60.0, 40.0, 90.5, 75.0), label="object"),
        Object(box=(70.0, 10.0, 95.0, 30.0), label="object"),
    )
    # stored on its side, and its line goes on in the next part
    assert (man.width, man.height, man.image_id) == (60, 90, second)
    assert man.image_uri == f"rexverse/0_500000_image_part_0.tsv#{second}"
    assert (dog.image_uri, dog.absent_labels, dog.window) == (
        "rexverse/0_500000_image_part_0.tsv#0",
        None,
        None,
    )


def test_golden_sizes_with_a_region_map(tmp_path: Path) -> None:
    boxes = [[60, 40, 30.5, 35], [70, 10, 25, 20], [5, 60, 10, 10]]
    sentences = [
        (
            STARTS[0],
            {"gt_boxes": boxes, "region_map": {"A dog.": [0], "Two lamps.": [2, 1], "None.": []}},
        )
    ]
    write(
        tmp_path, sentences, [(STARTS[0], {"gt_boxes": boxes, "region_map": {"the lamps": [1, 2]}})]
    )
    built = build(tmp_path)
    assert [text_of(turn) for sample in built.samples for turn in sample.turns][:4] == [
        "Provide a brief description for [0].",
        "A dog.",
        "Provide a brief description for [1,2].",
        "Two lamps.",
    ]
    assert text_of(built.samples[2].turns[1]) == "the lamps[1,2]"
    assert built.samples[0].objects[0].box == (60.0, 40.0, 90.5, 75.0)


def test_at_most_so_many_texts_of_an_image_always_the_same(tmp_path: Path) -> None:
    many = listed(*(([60 + k, 40, 99, 79], f"text {k}") for k in range(12)))
    write(tmp_path, [(STARTS[0], many)], [(STARTS[0], many)])
    built = build(tmp_path, BuildOptions(region_texts=3))
    assert built.tasks == {"region_caption": 3, "referring": 3}
    assert build(tmp_path, BuildOptions(region_texts=3)).samples == built.samples
    others = [
        text_of(s.turns[1]) for s in build(tmp_path, BuildOptions(region_texts=3, seed=1)).samples
    ]
    assert others != [text_of(s.turns[1]) for s in built.samples]
    assert not build(tmp_path, BuildOptions(region_texts=0)).samples


def test_crowded_images_are_cut_into_windows(tmp_path: Path) -> None:
    left = [([10 + k, 5, 40 + k, 35], f"left {k}") for k in range(3)]
    right = [([240 + k, 5, 280 + k, 35], f"right {k}") for k in range(3)]
    both = [([10, 5, 40, 35], "both"), ([241, 5, 281, 35], "both")]
    write(
        tmp_path, [(STARTS[2], listed(*left, *right))], [(STARTS[2], listed(*left, *right, *both))]
    )
    built = build(tmp_path, BuildOptions(max_objects=4))
    windows = {sample.window for sample in built.samples}
    assert windows == {(0, 0, 165, 40), (135, 0, 300, 40)}
    said = [text_of(sample.turns[1]) for sample in built.samples if sample.task == "referring"]
    # what names objects of two windows is left out
    assert said == ["left 0[0]", "left 1[1]", "left 2[2]", "right 0[0]", "right 1[1]", "right 2[2]"]


def test_bad_lines_boxes_and_images(tmp_path: Path) -> None:
    rows = [
        *GOOD,
        (STARTS[0], {"neither": []}),
        (STARTS[0], [1]),
        (STARTS[0], listed(([60, 40, float("nan"), 75], "lost"), ([60, 40, 90, 70], "kept"))),
        (STARTS[0], listed(("box", "lost"))),
        (STARTS[0] + 7, listed(DOG)),  # in the middle of a line
        (10**9, listed(DOG)),
        (STARTS[0], listed(([60, 40, 90, 70], "a <region1> dog"))),
        (STARTS[0], listed(([60, 40, 90, 70], None))),
        (STARTS[0], {"gt_boxes": [[1, 2, 30, 40]], "region_map": {"x": [1]}}),
    ]
    write(tmp_path, rows, GOOD)
    built = build(tmp_path)
    assert built.reasons == {
        "malformed": 4,
        "not_finite_box": 1,
        "undecodable_image": 1,
        "unknown_image": 1,
        "unsafe_text": 1,
        "unknown_object": 1,
    }
    assert "kept" in {text_of(sample.turns[1]) for sample in built.samples}


def test_a_truncated_image_has_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.effect_noise((100, 80), 50).convert("RGB")
    monkeypatch.setattr(
        "tests.dataset_builders.datasets.referring.test_rexverse.PICTURES",
        [truncated(noise), *PICTURES[1:]],
    )
    write(tmp_path, [(0, listed(DOG))], [(0, listed(DOG))])
    assert len(build(tmp_path).samples) == 2  # that it breaks off is seen when it is decoded


def test_files_of_neither_form_raise(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="not found"):
        build(tmp_path)
    write(tmp_path, [(0, {"regions": []})] * 3, GOOD)
    with pytest.raises(SettingError, match=r"hold no boxes in a known form, want (.|\n)*gt_boxes"):
        build(tmp_path)
    write(tmp_path, [], GOOD)
    with pytest.raises(SettingError, match="hold no boxes"):
        build(tmp_path)
    # boxes that make sense as corners and as sizes, and boxes that make sense as neither
    both = [(STARTS[2], listed(*(([5, 5, 20 + k, 30], "x") for k in range(20))))]
    neither = [(STARTS[2], listed(*(([290, 5 + k, 280, 39], "x") for k in range(20))))]
    for rows in (both, neither):
        write(tmp_path, GOOD, rows)
        with pytest.raises(
            SettingError,
            match=r"referring.annotations.tsv: of 20 boxes .* cannot tell xyxy from xywh",
        ):
            build(tmp_path)
