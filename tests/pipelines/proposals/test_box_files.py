"""Files of boxes: which forms are read, which image each box is of, and what is refused."""

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builders.records import BadRecord
from pipelines.errors import SettingError
from pipelines.proposals.box_files import BoxFile, open_box_file
from pipelines.schemas import PROPOSALS_SCHEMA

URI = "coco/train2017/000000000139.jpg"
Found = dict[str, tuple[list, list]]
"""Image -> boxes xyxy px, and a score for each."""


def coco_results(path: Path, found: Found) -> Path:
    rows = [
        {"image_id": name, "category_id": 1, "bbox": [a, b, c - a, d - b], "score": score}
        for name, (boxes, scores) in found.items()
        for (a, b, c, d), score in zip(boxes, scores, strict=True)
    ]
    path = path / "results.json"
    path.write_text(json.dumps(rows))
    return path


def release_rows(found: Found) -> list[dict]:
    return [
        {"image": name, "width": 96, "height": 80, "bbox_list": boxes, "score_list": scores}
        for name, (boxes, scores) in found.items()
    ]


def release_json(path: Path, found: Found) -> Path:
    path = path / "boxes.json"
    path.write_text(json.dumps(release_rows(found), indent=1))
    return path


def release_jsonl(path: Path, found: Found) -> Path:
    path = path / "boxes.jsonl"
    path.write_text(
        "\n\n".join(json.dumps(row) for row in release_rows(found))
    )  # blank lines are none
    return path


def parquet(path: Path, found: Found) -> Path:
    path = path / "boxes.parquet"
    columns: dict[str, Any] = {"image": pa.array(list(found), pa.string())}
    boxes = [boxes for boxes, _ in found.values()]
    columns["boxes"] = pa.array(boxes, pa.list_(pa.list_(pa.float64())))
    columns["scores"] = pa.array([scores for _, scores in found.values()], pa.list_(pa.float64()))
    pq.write_table(pa.table(columns | {"note": [b"\0"] * len(found)}), path)
    return path


def our_proposals(path: Path, found: Found) -> Path:
    path = path / "part-00000.parquet"
    rows = [
        {
            "image_id": name,
            "bucket": 0,
            "width": 96,
            "height": 80,
            "rotation": 1,
            "boxes": boxes,
            "scores": scores,
            "status": "ok",
        }
        for name, (boxes, scores) in found.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=PROPOSALS_SCHEMA), path)
    return path


FORMS = [coco_results, release_json, release_jsonl, parquet, our_proposals]


def lines(path: Path, *rows: Any) -> Path:
    path = path / "boxes.jsonl"
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return path


def boxes_of(path: Path, image_id: str = "139", image_uri: str = URI) -> dict:
    """Of the only image that there is."""
    with open_box_file(path) as file:
        file.claim(image_id, image_uri)
        return file.boxes_of(image_id, image_uri)


def reason_of(path: Path, image_id: str = "139", image_uri: str = URI) -> str:
    with pytest.raises(BadRecord) as error:
        boxes_of(path, image_id, image_uri)
    return error.value.reason


def refused(path: Path) -> str:
    with pytest.raises(ValueError, match=path.name) as error, open_box_file(path):
        pass
    assert not isinstance(error.value, BadRecord)
    return str(error.value)


@pytest.mark.parametrize("form", FORMS)
def test_golden(form, tmp_path: Path) -> None:
    """x, y, w, h become corners; everything else stays as it is, in its order."""
    boxes = [[10.5, 20.0, 40.0, 60.25], [-1.0, 0.0, 30.0, 20.0]]
    known = boxes_of(form(tmp_path, {"139": (boxes, [0.5, 0.75])}))
    assert (known["boxes"], known["scores"]) == (boxes, [0.5, 0.75])
    has_size = form in (release_json, release_jsonl, our_proposals)
    assert {name: known[name] for name in known.keys() - {"boxes", "scores"}} == (
        {"width": 96, "height": 80} if has_size else {}
    )


@pytest.mark.parametrize(
    "key", ["139", 139, URI, "train2017/000000000139.jpg", "000000000139.jpg", "000000000139"]
)
@pytest.mark.parametrize("image_id", ["139", "train2017/000000000139"])
def test_names_of_an_image(key: str | int, image_id: str, tmp_path: Path) -> None:
    path = lines(tmp_path, {"image": key, "boxes": [[1, 2, 3, 4]]}, {"image": "x", "boxes": []})
    known = boxes_of(path, image_id)
    assert known == {"boxes": [[1, 2, 3, 4]], "scores": [1.0]}


@pytest.mark.parametrize(
    "key", ["39.jpg", "9", "139.jpg", "2017/000000000139.jpg", "/" + URI, "coco"]
)
def test_names_that_are_of_another_image(key: str, tmp_path: Path) -> None:
    path = lines(tmp_path, {"image": key, "boxes": [[1, 2, 3, 4]]})
    assert reason_of(path) == "not_in_file"


def test_names_of_pictures_of_other_years_and_inside_containers(tmp_path: Path) -> None:
    path = lines(tmp_path, {"image_id": 9, "boxes": [[1, 2, 3, 4]]})
    for uri in ("coco/COCO_train2014_000000000009.jpg", "coco/COCO_train2014_000000000009_3.jpg"):
        assert boxes_of(path, "a/b", uri)["boxes"] == [[1, 2, 3, 4]]
    # The tar's own name is that of all its pictures.
    assert reason_of(path, "grit/9", "grit/000000000009.tar#1536+20480") == "not_in_file"
    uri = "grit/00001.tar#1536+20480"
    assert boxes_of(lines(tmp_path, {"image": uri, "boxes": []}), "x", uri)["boxes"] == []
    assert reason_of(lines(tmp_path, {"image": "00001", "boxes": []}), "x", uri) == "not_in_file"
    odd = lines(tmp_path, {"image": "b#1.jpg", "boxes": [[1, 2, 3, 4]]})
    assert boxes_of(odd, "x", "a/b#1.jpg")["boxes"] == [[1, 2, 3, 4]]


def test_a_number_is_an_id_where_ids_are_numbers(tmp_path: Path) -> None:
    """Image 2.jpg has id 1: boxes of image 2 are those of 3.jpg; no box names 2.jpg."""
    path = coco_results(tmp_path, {"2": ([[0, 0, 9, 9]], [0.5]), "3": ([[1, 1, 8, 8]], [0.5])})
    images = [(str(number), f"own/{number + 1}.jpg") for number in (1, 2, 3)]
    with open_box_file(path) as file:
        for image in images:
            file.claim(*image)
        found = [file.boxes_of(*image)["boxes"] for image in images]
        assert file.close_books(3) == 0
    assert found == [[], [[0, 0, 9, 9]], [[1, 1, 8, 8]]]


def test_score_is_optional(tmp_path: Path) -> None:
    for score in ({}, {"score": None}):
        path = tmp_path / "results.json"
        path.write_text(json.dumps([{"image_id": 139, "bbox": [1, 2, 3, 4]} | score]))
        assert boxes_of(path) == {"boxes": [[1, 2, 4, 6]], "scores": [1.0]}
    for score in ({}, {"scores": None}, {"score_list": [1.0]}):
        assert boxes_of(lines(tmp_path, {"image": URI, "boxes": [[1, 2, 3, 4]]} | score))[
            "scores"
        ] == [1.0]


def test_an_image_that_the_file_leaves_out(tmp_path: Path) -> None:
    """In a list of boxes it has none; where images are listed it is unknown."""
    other = {"7": ([[1, 2, 3, 4]], [0.5])}
    assert boxes_of(coco_results(tmp_path, other)) == {"boxes": [], "scores": []}
    for form in FORMS[1:]:
        assert reason_of(form(tmp_path, other)) == "not_in_file"


BAD_BOXES = {
    "no list": [7, None, "boxes", {"x": 1}],
    "no box": [[7], [None], ["1234"], [[[1, 2, 3, 4]]], [[1, 2, 3]], [[1, 2, 3, 4, 5]], [[]]],
    "no number": [[[1, 2, 3, None]], [[1, 2, 3, "4"]], [[1, 2, 3, True]], [[1, 2, 3, [4]]]],
    "no pixel": [
        [[1, 2, 3, float("nan")]],
        [[1, 2, float("inf"), 4]],
        [[float("-inf"), 2, 3, 4]],
        [[-1e9, 2, 3, 4]],
        [[1, 2, 3, 1e10]],
        [[1, 2, 3, 10**30]],
    ],
    "negative side": [[[10, 10, 9, 20]], [[10, 10, 20, 9]]],
    "one of two": [[[1, 2, 3, 4], [1, 2, 3]]],
}


@pytest.mark.parametrize("boxes", [b for group in BAD_BOXES.values() for b in group], ids=repr)
def test_malformed_boxes(boxes: Any, tmp_path: Path) -> None:
    good = {"image": "a.jpg", "boxes": [[1, 2, 3, 4]]}
    path = lines(tmp_path, good, {"image": URI, "boxes": boxes})
    with open_box_file(path) as file:
        for image in (("139", URI), ("a", "coco/a.jpg")):
            file.claim(*image)
        assert file.boxes_of("a", "coco/a.jpg")["boxes"] == [[1, 2, 3, 4]]
        with pytest.raises(BadRecord, match=r"record 1: .*(box|scores)") as error:
            file.boxes_of("139", URI)
        assert error.value.reason == "malformed_boxes"


@pytest.mark.parametrize(
    "record",
    [
        '"bbox": [1, 2, 3, 1e400]',
        '"bbox": [1, 2, NaN, 4]',
        '"bbox": [1, 2, -3, 4]',
        '"bbox": null',
        '"bbox": [[1, 2, 3, 4]]',
        '"bbox": [1, 2, 3, 4], "score": "0.5"',
        '"bbox": [1, 2, 3, 4], "score": true',
        '"bbox": [1, 2, 3, 4], "score": 1.5',
        '"bbox": [1, 2, 3, 4], "score": -0.1',
        '"bbox": [1, 2, 3, 4], "score": [0.5]',
    ],
)
def test_malformed_coco_results(record: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(f'[{{"image_id": 139, "bbox": [1, 2, 3, 4]}}, {{"image_id": 139, {record}}}]')
    assert reason_of(path) == "malformed_boxes"


@pytest.mark.parametrize(
    "fields",
    [
        {"scores": []},
        {"scores": [0.5, 0.5]},
        {"scores": 0.5},
        {"scores": [None]},
        {"scores": [float("nan")]},
        {"scores": [87]},
        {"scores": [-0.5]},
        {"width": -96},
        {"width": "96"},
        {"height": 80.5},
        {"height": float("nan")},
        {"height": True},
        {"height": 1e400},
        {"height": 2**40},
    ],
    ids=repr,
)
def test_malformed_scores_and_sizes(fields: dict, tmp_path: Path) -> None:
    assert (
        reason_of(lines(tmp_path, {"image": URI, "boxes": [[1, 2, 3, 4]]} | fields))
        == "malformed_boxes"
    )


def test_sizes_may_be_unknown(tmp_path: Path) -> None:
    row = {"image": URI, "boxes": [], "width": 0, "height": None}
    assert boxes_of(lines(tmp_path, row)) == {"boxes": [], "scores": []}
    assert boxes_of(lines(tmp_path, row | {"width": 96.0}))["width"] == 96


def test_an_image_listed_twice_and_two_images_of_one_name(tmp_path: Path) -> None:
    row = {"image": "a.jpg", "boxes": [[1, 2, 3, 4]]}
    assert reason_of(lines(tmp_path, row, row), "1", "coco/a.jpg") == "malformed_boxes"
    with open_box_file(lines(tmp_path, row, {"image": "val/b.jpg", "boxes": []})) as file:
        images = [("1", "coco/train/a.jpg"), ("2", "coco/val/a.jpg"), ("3", "coco/train/b.jpg")]
        for image in (*images, ("4", "coco/val/b.jpg")):
            file.claim(*image)
        for image in images[:2]:  # neither gets boxes that may be the other's
            with pytest.raises(BadRecord, match=r"'a.jpg' is the name of 2 images") as error:
                file.boxes_of(*image)
            assert error.value.reason == "ambiguous_key"
        with pytest.raises(BadRecord, match="not_in_file"):
            file.boxes_of(*images[2])
        assert file.boxes_of("4", "coco/val/b.jpg")["boxes"] == []


def test_names_without_an_image_are_counted(tmp_path: Path) -> None:
    found = {name: ([[1, 2, 3, 4]] * 2, [0.5] * 2) for name in ("7", "8", "9")}
    for form in FORMS:
        with open_box_file(form(tmp_path, found)) as file:
            assert file.close_books(0) == 3
            with pytest.raises(
                SettingError, match=r"names none of the 5 images \(it has '7', say\)"
            ):
                file.close_books(5)
            file.claim("8", "coco/eight.jpg")
            assert file.close_books(5) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("boxes.csv", "a,1,2,3,4", r"\.json, \.jsonl or \.parquet"),
        ("boxes.pkl", "", r"\.json, \.jsonl or \.parquet"),
        ("boxes.json", "[]", "holds no record"),
        ("boxes.json", '{"images": [{"id": 1}], "annotations": []}', "holds no record"),
        ("boxes.jsonl", "\n \n", "holds no record"),
        ("boxes.json", "", "not valid JSON"),
        ("boxes.json", '[{"image": "a", "boxes": []}, {"image": "b", "bo', "not valid JSON"),
        ("boxes.json", '[{"image": "a", "boxes": []}', "not valid JSON"),
        ("boxes.json", '[{"image": "a", "boxes": ' + "[" * 100_000, "not valid JSON"),
        ("boxes.json", '[{"image": "a", "boxes": ' + "1" * 5000 + "}]", "not valid JSON"),
        ("boxes.jsonl", '{"image": "a", "boxes": []}\n{"image": "b",', "line 2 is not JSON"),
        ("boxes.jsonl", '{"image": "a", "boxes": ' + "[" * 100_000, "line 1 is not JSON"),
        ("boxes.jsonl", '{"image": "a", "boxes": ' + "1" * 5000 + "}", "line 1 is not JSON"),
        ("boxes.jsonl", "\n[1, 2]", "record 0: not an object"),
        ("boxes.json", '[{"image": "a", "boxes": []}, 7]', "record 1: not an object"),
        ("boxes.json", '[{"boxes": []}]', "record 0: neither image_id nor image"),
        (
            "boxes.json",
            '[{"image": "", "image_id": null, "boxes": []}]',
            "record 0: neither image_id nor",
        ),
        ("boxes.json", '[{"image": ["a"], "boxes": []}]', "record 0: neither image_id nor image"),
        ("boxes.json", '[{"image_id": true, "boxes": []}]', "record 0: neither image_id nor image"),
        ("boxes.json", '[{"image": "a"}]', "record 0: none of bbox, boxes, bbox_list"),
        (
            "boxes.json",
            '[{"image": "a", "boxes": []}, {"image": "a", "bbox": [1, 2, 3, 4]}]',
            "some records are boxes, others images",
        ),
        ("boxes.parquet", "image,boxes", "is not a parquet file"),
        ("boxes.parquet", "", "is not a parquet file"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_refused_files(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert re.search(message, refused(path))


def test_refused_parquet_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "boxes.parquet"
    pq.write_table(pa.table({"image": ["a"], "bbox": [[1, 2, 3, 4]]}), path)
    assert "record 0: none of bbox, boxes" in refused(path)
    pq.write_table(pa.table({"name": ["a"]}), path)
    assert "record 0: neither image_id nor image" in refused(path)
    parquet(tmp_path, {f"{i}.jpg": ([[i, 2, 300, 400]], [0.5]) for i in range(200)})
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196  # the first pages; the footer is whole
    path.write_bytes(data)
    assert "is not a parquet file" in refused(path)
    strange = pa.array([b"\xff\xfe.jpg"]).view(pa.string())
    pq.write_table(pa.table({"image": strange, "boxes": [[[1.0, 2.0, 3.0, 4.0]]]}), path)
    assert "is not a parquet file: 'utf-8' codec can't decode" in refused(path)
    text = tmp_path / "boxes.jsonl"
    text.write_bytes(b'{"image": "\xff\xfe", "boxes": []}')
    assert "line 1 is not JSON" in refused(text)
    text.write_text('{"image": "\\ud800", "boxes": []}\n{"image": "a.jpg", "boxes": []}')
    assert (
        boxes_of(text, "1", "coco/a.jpg")["boxes"] == []
    )  # half a surrogate pair is only a strange name


float32 = st.floats(0, 4096, width=32)
box = st.tuples(float32, float32, float32, float32).map(
    lambda b: [min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])]
)
boxes_and_scores = st.lists(st.tuples(box, st.floats(0, 1, width=32)), max_size=5).map(
    lambda rows: ([list(b) for b, _ in rows], [score for _, score in rows])
)
name = st.from_regex(r"[a-z0-9][a-z0-9 .é_-]{0,8}", fullmatch=True)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(name.map(lambda text: f"{text}.jpg"), boxes_and_scores, min_size=1, max_size=6)
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, found: Found) -> None:
    """In every form, by every name, with images between them that the file does not know."""
    folder = tmp_path_factory.mktemp("boxes")
    images = [(f"id/{number}", f"world/pictures/{key}") for number, key in enumerate(found)]
    for form in FORMS:
        if form is coco_results and not any(boxes for boxes, _ in found.values()):
            continue
        with open_box_file(form(folder, found)) as file:
            for image in (*images, ("other", "world/pictures/~")):
                file.claim(*image)
            for image, (boxes, scores) in zip(images, found.values(), strict=True):
                known = file.boxes_of(*image)
                read = np.array(known["boxes"]).reshape(-1, 4)
                # in a list of boxes width and height are differences, rounded once
                np.testing.assert_allclose(
                    read, np.array(boxes).reshape(-1, 4), rtol=1e-12, atol=1e-9
                )
                assert known["scores"] == scores
            assert file.close_books(len(images)) == 0


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """50,000 boxes are 8 MB of Python lists; what is held meanwhile is a chunk of the file."""
    row = '{"image_id": %d, "bbox": [1.5, 2.5, 30.25, 40.125], "score": 0.5}'
    path = tmp_path / "results.json"
    path.write_text("[" + ",\n".join(row % (number // 100) for number in range(50_000)) + "]")
    tracemalloc.start()
    with open_box_file(path) as file:
        file.claim("7", "coco/7.jpg")
        assert len(file.boxes_of("7", "coco/7.jpg")["boxes"]) == 100
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6, (
        f"{peak} bytes"
    )  # two chunks of text, and what the decoder makes of them: 4.2 MB


def test_box_files_are_not_kept_open(tmp_path: Path) -> None:
    with open_box_file(lines(tmp_path, {"image": URI, "boxes": []})) as file:
        assert isinstance(file, BoxFile)
    with pytest.raises(Exception, match="closed"):
        file.claim("139", URI)
