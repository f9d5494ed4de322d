"""Images that are broken, odd or turned: each gets a status and a reason, or boxes in place."""

import io
import json
import struct
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dataset_builders.images import image_size
from fo1_model.detectors import GroundTruthJitterConfig, UntrainedOPNConfig
from pipelines.artifacts import Artifact
from pipelines.proposals import generate
from pipelines.proposals.generate import ProposalsConfig
from pipelines.proposals.workers import ImageLoader, WorkerSettings, slices
from pipelines.row_accounting import LedgerError
from tests.pipelines.coco_world import Steps

SIDES = (96, 64)
"""Of the upright pictures, px."""
BOX = [64.0, 8.0, 88.0, 24.0]
"""Of the bright object in them, xyxy px: off-centre, so that every wrong turn moves it."""
EXACT = GroundTruthJitterConfig(jitter=0.0, num_distractors=0)
BRIGHT, DARK = (240, 200, 40), (16, 32, 64)


def upright() -> np.ndarray:
    """uint8[64, 96, 3]. Flat blocks of 8 px, which JPEG keeps the same however it is turned."""
    pixels = np.full((SIDES[1], SIDES[0], 3), DARK, np.uint8)
    pixels[8:24, 64:88] = BRIGHT
    return pixels


def stored(orientation: int) -> np.ndarray:
    """The upright image as a camera stores it.

    By the definition in the EXIF standard: where the first row and the first column of the stored
    image belong.
    """
    up = upright()
    return np.ascontiguousarray(
        {
            1: up,  # top, left
            2: up[:, ::-1],  # top, right
            3: up[::-1, ::-1],  # bottom, right
            4: up[::-1],  # bottom, left
            5: up.swapaxes(0, 1),  # left, top
            6: up[:, ::-1].swapaxes(0, 1),  # right, top
            7: up[::-1, ::-1].swapaxes(0, 1),  # right, bottom
            8: up[::-1].swapaxes(0, 1),  # left, bottom
        }[orientation]
    )


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    if kind == "JPEG":
        options = {"quality": 95, "subsampling": 0} | options
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = stored(orientation) if orientation in range(1, 9) else upright()
    return encoded(Image.fromarray(pixels), kind, exif=exif)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG made by hand: its header may claim anything."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def palette_png() -> bytes:
    image = Image.fromarray(upright()).quantize(4)
    return encoded(image, "PNG", transparency=bytes([0, 255, 128, 255]))


def animated_gif() -> bytes:
    frames = [Image.fromarray(pixels) for pixels in (upright(), upright()[::-1].copy())]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=40)


def sixteen_bit_grey() -> bytes:
    high = upright()[:, :, 0].astype(np.uint16)
    return encoded(Image.fromarray(high << 8 | 0x7F), "PNG")


def sixteen_bit_rgb() -> bytes:
    wide = upright().astype(">u2") << 8 | 0x7F
    rows = b"".join(
        b"\0" + row.astype(">u2").tobytes() for row in wide
    )  # each behind its filter byte
    return png(*SIDES, 16, 2, rows)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One file and what must become of it.

    size: as annotated; also as decoded, where the status is ok.
    """

    data: bytes | None = None
    suffix: str = "jpg"
    size: tuple[int, int] = SIDES
    status: str = "ok"
    rotation: int = 1
    grey: bool = False


JPEG = encoded(Image.fromarray(upright()), "JPEG")
PICTURES = {
    "plain": Picture(data=JPEG),
    "truncated": Picture(data=JPEG[: len(JPEG) // 2], status="undecodable_image"),
    "cut in its header": Picture(data=JPEG[:11], status="undecodable_image"),
    "zero bytes": Picture(data=b"", status="undecodable_image"),
    "text": Picture(data=b"<html>404 not found</html>", status="undecodable_image"),
    "huge": Picture(
        data=png(30_000, 30_000, 8, 2, b"\0"), size=(30_000, 30_000), status="image_too_large"
    ),
    "large": Picture(
        data=png(10_000, 9_000, 8, 2, b"\0"), size=(10_000, 9_000), status="image_too_large"
    ),
    "no rows": Picture(data=png(*SIDES, 8, 2, b""), suffix="png", status="undecodable_image"),
    "one pixel": Picture(data=encoded(Image.new("RGB", (1, 1)), "PNG"), suffix="png", size=(1, 1)),
    "cmyk": Picture(data=encoded(Image.fromarray(upright()).convert("CMYK"), "JPEG")),
    "grey jpeg": Picture(data=encoded(Image.fromarray(upright()[:, :, 0]), "JPEG"), grey=True),
    "palette": Picture(data=palette_png(), suffix="png"),
    "rgba": Picture(data=encoded(Image.fromarray(upright()).convert("RGBA"), "PNG"), suffix="png"),
    "16 bit grey": Picture(data=sixteen_bit_grey(), suffix="png", grey=True),
    "16 bit rgb": Picture(data=sixteen_bit_rgb(), suffix="png"),
    "animated gif": Picture(data=animated_gif(), suffix="gif"),
    "png named jpg": Picture(data=encoded(Image.fromarray(upright()), "PNG")),
    "size of the stored": Picture(
        data=turned(6), size=(64, 96), status="size_mismatch", rotation=6
    ),
    "no such orientation": Picture(data=turned(9)),
    "broken exif": Picture(
        data=encoded(Image.fromarray(upright()), "JPEG", exif=b"Exif\0\0garbage")
    ),
    **{f"turned {n}": Picture(data=turned(n), rotation=n) for n in range(1, 9)},
    **{f"turned png {n}": Picture(data=turned(n, "PNG"), suffix="png", rotation=n) for n in (3, 6)},
    **{
        f"turned tiff {n}": Picture(data=turned(n, "TIFF"), suffix="tif", rotation=n)
        for n in (3, 6)
    },
    "missing": Picture(status="missing_image"),
    "link out": Picture(status="unsafe_path"),
    "link in": Picture(),
    "folder": Picture(status="missing_image"),
}
IDS = {name: str(number) for number, name in enumerate(PICTURES)}
REASONS = Counter(p.status for p in PICTURES.values() if p.status != "ok")


def write_pictures(folder: Path) -> dict[str, str]:
    """Write them all; return the file name of each."""
    folder.mkdir(parents=True)
    names = {name: f"{int(IDS[name]):012d}.{picture.suffix}" for name, picture in PICTURES.items()}
    for name, picture in PICTURES.items():
        if picture.data is not None:
            (folder / names[name]).write_bytes(picture.data)
    (folder.parent.parent / "outside.jpg").write_bytes(JPEG)
    (folder / names["link out"]).symlink_to(folder.parent.parent / "outside.jpg")
    (folder / names["link in"]).symlink_to(names["plain"])
    (folder / names["folder"]).mkdir()
    return names


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bad")
    names = write_pictures(root / "data/coco/train2017")
    write_pictures(root / "data/coco/val2017")
    images, annotations = [], []
    for name, picture in PICTURES.items():
        width, height = picture.size
        images.append(
            {"id": int(IDS[name]), "file_name": names[name], "width": width, "height": height}
        )
        box = [64, 8, 24, 16] if width >= SIDES[0] else [0, 0, 1, 1]
        common = {"category_id": 1, "iscrowd": 0, "area": box[2] * box[3]}
        annotations.append(common | {"id": len(images), "image_id": int(IDS[name]), "bbox": box})
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = root / "data/coco/annotations/instances_train2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps(document))
    Steps(root / "data", root).build()
    return root


def steps_of(data: Path, detector, root: Path | None = None, **runtime) -> Steps:
    steps = Steps(data / "data", root or data, **({"max_reject_fraction": 0.5} | runtime))
    steps.detector = detector
    return steps


def rows_of(artifact: Artifact, num_buckets: int) -> dict[str, dict]:
    """Every row by the name of its picture."""
    tables = [artifact.read_table(f"part-{bucket:05d}.parquet") for bucket in range(num_buckets)]
    rows = [row for table in tables for row in table.to_pylist()]
    assert len({row["image_id"] for row in rows}) == len(rows)
    names = {number: name for name, number in IDS.items()}
    return {names[row["image_id"]]: row for row in rows}


@pytest.fixture(scope="module", params=["ground truth", "opn"])
def proposed(request, data: Path) -> tuple[str, dict, dict[str, dict]]:
    """Detector, manifest, rows."""
    steps = steps_of(data, EXACT if request.param == "ground truth" else UntrainedOPNConfig())
    manifest = steps.propose()
    return request.param, manifest, rows_of(steps.proposals, 8)


def test_every_picture_has_a_row_and_every_loss_a_reason(proposed: tuple) -> None:
    _, manifest, rows = proposed
    assert set(rows) == set(PICTURES)
    assert {name: row["status"] for name, row in rows.items()} == {
        n: p.status for n, p in PICTURES.items()
    }
    for row in rows.values():
        assert (row["error"] is None) == (row["status"] == "ok")
        assert " at 0x" not in (row["error"] or "")
    ledger = manifest["ledger"]
    assert ledger["rejects_by_reason"] == dict(REASONS)
    assert (ledger["rows_in"], ledger["rejects"]) == (len(PICTURES), sum(REASONS.values()))


def test_sizes_and_rotations_are_those_of_the_upright_picture(proposed: tuple) -> None:
    for name, row in proposed[2].items():
        decoded = row["status"] in ("ok", "size_mismatch")
        expected = SIDES if row["status"] == "size_mismatch" else PICTURES[name].size
        assert (row["width"], row["height"]) == (expected if decoded else (0, 0)), name
        assert row["rotation"] == (PICTURES[name].rotation if decoded else 0), name


def test_boxes_lie_in_the_upright_picture(proposed: tuple) -> None:
    detector, _, rows = proposed
    for name, row in rows.items():
        boxes = np.array(row["boxes"], np.float32).reshape(-1, 4)
        if row["status"] != "ok":
            assert len(boxes) == 0
        elif detector == "ground truth":
            assert row["boxes"] == [[0, 0, 1, 1] if name == "one pixel" else BOX], name
        else:
            width, height = PICTURES[name].size
            assert len(boxes) > 10 or name == "one pixel"
            assert (boxes >= 0).all()
            assert (boxes <= [width, height, width, height]).all()
            assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()


def test_the_detector_sees_the_object_where_its_box_is(data: Path) -> None:
    """In every colour mode and every orientation: what OPN is given is the upright picture."""
    steps = steps_of(data, UntrainedOPNConfig())
    steps.propose()
    settings = WorkerSettings(
        detector=steps.detector,
        checkpoint=None,
        output=steps.proposals,
        folders=steps.folders,
        device="cpu",
    )
    counts = [
        steps.proposals.read_table(f"images-{bucket:05d}.parquet").num_rows for bucket in range(8)
    ]
    tasks = [task for bucket, count in enumerate(counts) for task in slices(bucket, count)]
    loader = ImageLoader(settings)
    names = {number: name for name, number in IDS.items()}
    seen = {
        names[row["image_id"]]: prepared for task in tasks for row, prepared in loader.load(**task)
    }
    assert {name for name, prepared in seen.items() if prepared is not None} == {
        name for name, picture in PICTURES.items() if picture.status == "ok"
    }
    assert seen["plain"].pixels.shape == (3, 85, 128)
    for name, prepared in seen.items():
        if prepared is None or name == "one pixel":
            continue
        assert prepared.scale == (128 / 96, 128 / 96)
        x1, y1, x2, y2 = (round(edge * 128 / 96) for edge in BOX)
        inside = prepared.pixels[:, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].reshape(3, -1).astype(int)
        bright, dark = (([c[0]] * 3 if PICTURES[name].grey else c) for c in (BRIGHT, DARK))
        assert np.abs(inside - np.array(bright)[:, None]).max() < 14, name
        outside = prepared.pixels.astype(int)
        outside[:, y1 - 2 : y2 + 2, x1 - 2 : x2 + 2] = np.array(dark)[:, None, None]
        assert np.abs(outside - np.array(dark)[:, None, None]).max() < 14, name
    for orientation in range(2, 9):  # so their boxes are the same, too
        np.testing.assert_array_equal(seen[f"turned {orientation}"].pixels, seen["turned 1"].pixels)
    table = loader(pa.Table.from_pylist(tasks))
    assert table["status"].to_pylist().count("ok") == len(PICTURES) - sum(REASONS.values())


def test_a_header_says_the_size_that_decoding_gives() -> None:
    for name, picture in PICTURES.items():
        if picture.status == "ok" and picture.data is not None:
            assert image_size(picture.data) == picture.size, name


@pytest.mark.parametrize("detector", [EXACT, UntrainedOPNConfig()], ids=["ground truth", "opn"])
def test_above_the_limit_the_run_fails_and_says_what_was_lost(
    detector, data: Path, tmp_path: Path
) -> None:
    strict = steps_of(data, detector, tmp_path, max_reject_fraction=0.2)
    strict.build()
    rejects = sum(REASONS.values())
    message = (
        rf"proposals/coco/jitter: {rejects} of {len(PICTURES)} rows rejected "
        r"\(5 undecodable_image, 2 image_too_large, 2 missing_image, 1 size_mismatch, "
        r"1 unsafe_path\), more than "
        r"max_reject_fraction=0\.2 allows\. .* lie in .*rejects-\*\.parquet and the rows of part"
    )
    with pytest.raises(LedgerError, match=message):
        strict.propose()
    assert strict.proposals.status() == "partial"
    assert sorted(strict.proposals.finished()) == list(range(8))
    looser = steps_of(data, detector, tmp_path)  # nothing is looked at again
    looser.propose()
    assert looser.proposals.status() == "done"


def test_a_folder_of_pictures_whose_sizes_nobody_says(data: Path, tmp_path: Path) -> None:
    """A source that walks a folder: what is there is listed, and no size is checked."""
    steps = steps_of(data, UntrainedOPNConfig(), tmp_path)
    config = ProposalsConfig(image_source="coco_val2017", detector=steps.detector)
    inputs = generate.proposals_inputs(config, steps.folders, steps.cache, (None,))
    output = steps.artifact("proposals", "coco_val2017/opn_untrained", generate, config, inputs)
    generate.propose(
        config,
        output,
        folders=steps.folders,
        runtime=steps.runtime,
        inputs=inputs,
        supplies=(None,),
    )
    rows = rows_of(output, 16)
    assert set(PICTURES) - set(rows) == {"missing", "folder"}
    for name, row in rows.items():
        unchecked = PICTURES[name].status == "size_mismatch"
        assert row["status"] == ("ok" if unchecked else PICTURES[name].status), name
        if row["status"] == "ok":
            size = SIDES if unchecked else PICTURES[name].size
            assert (row["width"], row["height"], row["rotation"]) == (
                *size,
                PICTURES[name].rotation,
            ), name
