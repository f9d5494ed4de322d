from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataset_builders import BuildOptions, DataFolders
from dataset_builders.datasets.instruction.cauldron import CAULDRON_IMAGES, DATASETS, FILES
from dataset_builders.errors import SettingError
from dataset_builders.images import bucket_of, read_image_bytes
from tests.dataset_builders.conftest import collect, text_of
from tests.formats.scenes import jpeg, png, rotated

(SPEC,) = DATASETS
WIDE = png(Image.new("RGB", (64, 48)))
TALL = jpeg(Image.new("RGB", (30, 70)))
TURNED = rotated(Image.new("RGB", (90, 40)))


def stored(data: Any) -> dict[str, Any]:
    return {"bytes": data, "path": None}


def text(user: Any, assistant: Any) -> dict[str, Any]:
    return {"user": user, "assistant": assistant, "source": "TQA"}


def rows() -> list[dict[str, Any]]:
    return [
        {
            "images": [stored(WIDE)],
            "texts": [text("Which?\nA: ice\nB: rain", "Answer: B"), text("Sure?", "Yes.\r\n")],
        },
        {"images": [stored(TALL)], "texts": [text("Describe.", "A leaf.")]},
        {"images": [stored(TURNED)], "texts": [text("What?", "图")]},
    ]


def put(
    root: Path,
    written: list[Any],
    name: str = "tqa/train-00000-of-00001.parquet",
    *,
    group: int = 2,
) -> None:
    path = root / "cauldron" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(written), path, row_group_size=group)


def build(root: Path) -> Any:
    return collect(SPEC.samples(DataFolders(str(root)), BuildOptions()))


def test_golden_samples(tmp_path: Path) -> None:
    put(tmp_path, rows())
    built = build(tmp_path)
    assert built.rejects == []
    assert built.ledger.used == {"record": 3}
    one, two, three = built.samples
    assert [(turn.role, text_of(turn)) for turn in one.turns] == [
        ("user", "Which?\nA: ice\nB: rain"),
        ("assistant", "Answer: B"),
        ("user", "Sure?"),
        ("assistant", "Yes."),
    ]
    assert one.sample_id == "cauldron/tqa/train-00000-of-00001/0#0/0/instruction/0"
    assert one.image_id == "tqa/train-00000-of-00001/0#0/0"
    assert one.image_uri == "cauldron/tqa/train-00000-of-00001.parquet#0/0/0"
    assert (one.task, one.image_source, one.objects) == ("instruction", "cauldron", ())
    assert [(s.width, s.height) for s in built.samples] == [(64, 48), (30, 70), (90, 40)]
    assert two.image_uri == "cauldron/tqa/train-00000-of-00001.parquet#0/1/0"
    assert three.image_id == "tqa/train-00000-of-00001/1#0/0"
    assert three.image_uri == "cauldron/tqa/train-00000-of-00001.parquet#1/0/0"
    assert text_of(three.turns[1]) == "图"


def test_uris_lead_to_the_bytes(tmp_path: Path) -> None:
    put(tmp_path, rows())
    folders = DataFolders(str(tmp_path))
    found = [read_image_bytes(folders, sample.image_uri) for sample in build(tmp_path).samples]
    assert found == [WIDE, TALL, TURNED]


def test_the_source_lists_the_same_images_in_buckets_of_a_row_group(tmp_path: Path) -> None:
    put(tmp_path, rows() * 10, "tqa/a.parquet", group=5)
    put(
        tmp_path,
        [*rows(), {"images": [stored(TALL)] * 2, "texts": [text("a", "b")]}],
        "nlvr2/a.parquet",
    )
    listed = list(CAULDRON_IMAGES.images(DataFolders(str(tmp_path))))
    built = build(tmp_path)
    assert [(ref.image_id, ref.image_uri) for ref in listed] == [
        (s.image_id, s.image_uri) for s in built.samples
    ]
    assert {(ref.width, ref.height) for ref in listed} == {(0, 0)}
    buckets: dict[str, set[int]] = {}
    for ref in listed:
        buckets.setdefault(ref.image_id.partition("#")[0], set()).add(bucket_of(ref.image_id, 256))
    assert len(buckets) == 8
    assert all(len(found) == 1 for found in buckets.values())


def test_files_without_names_of_images(tmp_path: Path) -> None:
    put(tmp_path, [{"images": [{"bytes": WIDE}], "texts": [text("a", "b")]}])
    assert len(build(tmp_path).samples) == 1
    assert len(list(CAULDRON_IMAGES.images(DataFolders(str(tmp_path))))) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": [stored(WIDE), stored(TALL)]}, "several_images"),
        ({"images": []}, "missing_image"),
        ({"images": None}, "missing_image"),
        ({"images": [stored(None)]}, "missing_image"),
        ({"images": [stored(b"")]}, "undecodable_image"),
        ({"images": [stored(b"no picture")]}, "undecodable_image"),
        ({"texts": []}, "empty_text"),
        ({"texts": None}, "malformed"),
        ({"texts": [text("a", None)]}, "malformed"),
        ({"texts": [text("", "b")]}, "empty_text"),
        ({"texts": [text("a", "b"), text("c", " ")]}, "empty_text"),
        ({"texts": [text("<image>a", "b")]}, "unsafe_text"),
        ({"texts": [text("a", "b\u2066")]}, "unsafe_text"),
        ({"texts": [text("a", "b<|im_start|>")]}, "unsafe_text"),
        ({"texts": [text("a", "b" * 20_001)]}, "text_too_long"),
    ],
)
def test_bad_rows_are_rejected_with_their_reason(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    written = rows()
    written[2] |= change
    put(tmp_path, written)
    built = build(tmp_path)
    assert built.reasons == {reason: 1}
    assert built.rejects[0].record_id == "tqa/train-00000-of-00001.parquet#1/0"
    assert len(built.samples) == 2


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    broken = pa.array([b"caf\xe9", b"fine"], pa.binary()).view(pa.string())
    texts = pa.StructArray.from_arrays([broken, broken, broken], ["user", "assistant", "source"])
    images = pa.array([[stored(WIDE)], [stored(TALL)]])
    path = tmp_path / "cauldron/a/a.parquet"
    path.parent.mkdir(parents=True)
    listed = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), texts)
    pq.write_table(pa.table({"images": images, "texts": listed}), path)
    built = build(tmp_path)
    assert built.reasons == {"malformed": 1}
    assert [text_of(turn) for turn in built.samples[0].turns] == ["fine", "fine"]


def test_columns_of_other_types_are_malformed(tmp_path: Path) -> None:
    put(tmp_path, [{"images": "a", "texts": "b"}], "a/a.parquet")
    put(tmp_path, [{"images": [WIDE], "texts": [text("a", "b")]}], "b/a.parquet")
    put(tmp_path, rows())
    assert build(tmp_path).reasons == {"malformed": 2}


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"(?s)cauldron/\*/\*\.parquet not found"):
        build(tmp_path)
    put(tmp_path, [{"image": WIDE, "texts": []}], "a/a.parquet")
    with pytest.raises(SettingError, match=r"(?s)a/a\.parquet has no column images.*layout is"):
        build(tmp_path)
    (tmp_path / "cauldron/a/a.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(SettingError, match=r"a/a\.parquet is not a whole parquet file"):
        build(tmp_path)
    put(tmp_path, [{"images": [stored(WIDE)], "texts": [{"question": "a"}]}] * 120, "a/a.parquet")
    with pytest.raises(SettingError, match="none of the first 100 records"):
        build(tmp_path)
    assert SPEC.containers == (FILES,)
