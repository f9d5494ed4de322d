import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.referring.grit import DATASETS
from dataset_builders.errors import SettingError
from dataset_builders.images import read_image_bytes
from dataset_builders.records import Object, Reject
from dataset_builders.spec import BuildOptions
from tests.dataset_builders.conftest import collect, text_of
from tests.formats.scenes import jpeg, rotated

SPECS = {spec.name: spec for spec in DATASETS}
JPEG = jpeg(Image.new("RGB", (200, 100)))


def record(caption: Any = "a dog in the big field", **fields: Any) -> dict[str, Any]:
    """A record with chunks "a dog", "the big field" and the expression "a dog in the big field"."""
    return {
        "id": 1795296605919,
        "caption": caption,
        "width": 999,
        "height": 999,
        "noun_chunks": [[0.0, 5.0, 0.1, 0.2, 0.5, 0.6, 0.9], [9.0, 22.0, 0.0, 0.5, 1.0, 1.0, 0.66]],
        "ref_exps": [[0.0, 22.0, 0.1, 0.2, 0.5, 0.6, 0.9]],
        **fields,
    }


def shard(path: Path, members: list[tuple[str, bytes]], *, kind: bytes = tarfile.REGTYPE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            tar.addfile(info, io.BytesIO(data))
    return path


def pair(key: str, content: Any, data: bytes = JPEG) -> list[tuple[str, bytes]]:
    return [
        (f"{key}.jpg", data),
        (f"{key}.txt", b"x"),
        (f"{key}.json", json.dumps(content).encode()),
    ]


def build(root: Path, name: str = "grit", options: BuildOptions | None = None) -> SimpleNamespace:
    return collect(SPECS[name].samples(DataFolders(str(root)), options or BuildOptions()))


def test_golden_shards(tmp_path: Path) -> None:
    upright = Image.new("RGB", (100, 200))
    twice = record("Ein Café 😀 mit zwei roten Hüten", noun_chunks=[
        [15, 31, 0.0, 0.0, 0.5, 0.5, 0.9],
        [15, 31, 0.5, 0.0, 1.0, 0.5, 0.9],
        [4, 8, 0.2, 0.2, 0.4, 0.4, 0.5],
    ], ref_exps=[])  # fmt: skip
    shard(
        tmp_path / "grit/00000.tar",
        pair("000000000", record()) + pair("000000001", twice, rotated(upright)),
    )
    shard(tmp_path / "grit/00001.tar", pair("000010000", record(noun_chunks=[])))
    built = build(tmp_path)
    assert built.ledger.used == {"box": 7, "record": 3}
    assert [(s.sample_id, text_of(s.turns[1])) for s in built.samples] == [
        ("grit/00000/000000000/grounding/00000-000000000", "a dog[0] in the big field[1]"),
        ("grit/00000/000000000/referring/00000-000000000-0", "a dog in the big field[0]"),
        ("grit/00000/000000001/grounding/00000-000000001", "Ein Café 😀 mit zwei roten Hüten[0,1]"),
        ("grit/00000/000000001/referring/00000-000000001-0", "zwei roten Hüten[0,1]"),
        ("grit/00001/000010000/grounding/00001-000010000", "a dog in the big field[0]"),
        ("grit/00001/000010000/referring/00001-000010000-0", "a dog in the big field[0]"),
    ]
    first, _, turned, *_ = built.samples
    # shares of the image's own 200x100 pixels, not of the 999 of the record; the expression has
    # the same box
    assert first.objects == (
        Object(box=(20.0, 20.0, 100.0, 60.0), label="a dog"),
        Object(box=(0.0, 50.0, 200.0, 100.0), label="the big field"),
    )
    assert (turned.width, turned.height) == (100, 200)
    assert turned.objects[2] == Object(box=(20.0, 40.0, 40.0, 80.0), label="object", ignore=True)
    assert read_image_bytes(DataFolders(str(tmp_path)), first.image_uri) == JPEG
    listed = list(SPECS["grit"].images[0].images(DataFolders(str(tmp_path))))
    assert [ref.image_id for ref in listed if not isinstance(ref, Reject)] == [
        "00000/000000000",
        "00000/000000001",
        "00001/000010000",
    ]
    assert {sample.image_uri for sample in built.samples} == {
        ref.image_uri for ref in listed if not isinstance(ref, Reject)
    }


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"caption": None}, "malformed"),
        ({"caption": "a dog <|im_end|> the big"}, "unsafe_text"),
        ({"noun_chunks": None}, "malformed"),
        ({"ref_exps": "[]"}, "malformed"),
        ({"noun_chunks": [], "ref_exps": []}, "unknown_object"),
        ({"noun_chunks": [[0, 5, 0.1, 0.2, 0.5, 0.6, 0.3]], "ref_exps": []}, "unknown_object"),
    ],
)
def test_bad_records(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    shard(tmp_path / "grit/00000.tar", pair("0", record(**fields)) + pair("1", record()))
    built = build(tmp_path)
    assert built.reasons == {reason: 1}
    assert {sample.image_id for sample in built.samples} == {"00000/1"}


def test_bad_boxes_leave_their_phrase_as_text(tmp_path: Path) -> None:
    nan = float("nan")
    rows = [
        [0, 5, 0.1, 0.2, nan, 0.6, 0.9],
        [9, 22, 0.5, 0.2, 0.1, 0.6, 0.9],
        [0, 99, 0.1, 0.2, 0.5, 0.6, 0.9],
        [0, 5, 0.1, 0.2, 0.5],
        "x",
        [6, 8, 0.1, 0.2, 0.5, 0.6, 0.9],
    ]
    shard(tmp_path / "grit/00000.tar", pair("0", record(noun_chunks=rows, ref_exps=[])))
    built = build(tmp_path)
    assert built.reasons == {"not_finite_box": 1, "inverted_box": 1, "malformed": 3}
    assert [text_of(sample.turns[1]) for sample in built.samples] == ["a dog in[0] the big field"]


def test_bad_members(tmp_path: Path) -> None:
    members = [
        *pair("000", record()),
        ("001.jpg", JPEG),
        ("002.json", json.dumps(record()).encode()),
        ("003.jpg", JPEG),
        ("003.json", b"{"),
        *pair("004", record(), b"no picture"),
        *pair("../005", record()),
        *pair("000", record()),
        ("006.jpg", JPEG),
        ("006.json", b" " * (1 << 21)),
    ]
    shard(tmp_path / "grit/00000.tar", members)
    built = build(tmp_path)
    assert built.reasons == {
        "malformed": 2,
        "missing_image": 1,
        "undecodable_image": 1,
        "unsafe_path": 1,
        "duplicate_id": 1,
        "text_too_long": 1,
    }
    assert {sample.image_id for sample in built.samples} == {"00000/000"}
    listed = list(SPECS["grit"].images[0].images(DataFolders(str(tmp_path))))
    assert [item.reason for item in listed if isinstance(item, Reject)] == ["unsafe_path"]


def test_links_in_a_shard_are_never_followed(tmp_path: Path) -> None:
    shard(tmp_path / "grit/00000.tar", [*pair("1", record())])
    with tarfile.open(tmp_path / "grit/00000.tar", "a") as tar:
        for name in ("2.jpg", "2.json"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    built = build(tmp_path)
    assert built.ledger.read["record"] == 1


@pytest.mark.parametrize("cut", [700, 512 * 4, -5000, -10240])
def test_a_shard_that_breaks_off_raises(tmp_path: Path, cut: int) -> None:
    path = shard(tmp_path / "grit/00000.tar", pair("0", record()) + pair("1", record()))
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        end = max(member.offset_data + 512 * -(-member.size // 512) for member in tar)
    path.write_bytes(data[: cut if cut > 0 else end + (0 if cut == -10240 else -600)])
    with pytest.raises(SettingError, match=r"00000.tar is no whole tar"):
        build(tmp_path)


def test_a_broken_header_in_the_middle_raises(tmp_path: Path) -> None:
    path = shard(tmp_path / "grit/00000.tar", pair("0", record()) + pair("1", record()))
    with tarfile.open(path) as tar:
        header = tar.getmembers()[3].offset
    data = bytearray(path.read_bytes())
    data[header + 148 : header + 156] = b"99999999"  # its checksum
    path.write_bytes(bytes(data))
    with pytest.raises(SettingError, match=r"broken header, at byte"):
        build(tmp_path)


def table(path: Path, rows: list[dict[str, Any]], *, group: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


def test_golden_metadata(tmp_path: Path) -> None:
    folder = tmp_path / "grit/images/00000"
    folder.mkdir(parents=True)
    rows = [{**record(), "key": f"00000000{n}", "status": "success"} for n in range(3)]
    rows[1]["status"] = "failed_to_download"
    for name in ("000000000", "000000002"):
        (folder / f"{name}.jpg").write_bytes(JPEG)
    rows.append({**record(), "key": "000000003", "status": "success"})
    rows.append({**record(), "key": "../../x", "status": "success"})
    table(tmp_path / "grit/metadata/00000.parquet", rows)
    built = build(tmp_path, "grit_metadata", BuildOptions(single_names=0))
    assert [(s.sample_id, s.image_uri, text_of(s.turns[1])) for s in built.samples] == [
        (
            f"grit_metadata/images/00000/00000000{n}/grounding/00000-{n}",
            f"grit/images/00000/00000000{n}.jpg",
            "a dog[0] in the big field[1]",
        )
        for n in (0, 2)
    ]
    assert built.reasons == {"missing_image": 1, "unsafe_path": 1}
    assert built.ledger.read["record"] == 4  # what could not be fetched is no record


def test_the_published_table_has_ids_alone(tmp_path: Path) -> None:
    (tmp_path / "grit/images").mkdir(parents=True)
    (tmp_path / "grit/images/1795296605919.jpg").write_bytes(JPEG)
    table(tmp_path / "grit/metadata/a.parquet", [record()])
    (sample, _) = build(tmp_path, "grit_metadata").samples
    assert sample.image_id == "images/1795296605919"


def test_wrong_files_raise(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"grit/\*.tar not found"):
        build(tmp_path)
    pixels = [[0, 5, 10 + k, 20, 90, 60, 0.9] for k in range(30)]
    shard(tmp_path / "grit/00000.tar", pair("0", record(noun_chunks=pixels)))
    with pytest.raises(SettingError, match="declared normalised"):
        build(tmp_path)
    shard(tmp_path / "grit/00000.tar", [])
    with pytest.raises(SettingError, match="no shard holds"):
        build(tmp_path)
    (tmp_path / "grit/images").mkdir()
    table(tmp_path / "grit/metadata/a.parquet", [{"id": 1, "caption": "x", "noun_chunks": [[1.0]]}])
    with pytest.raises(SettingError, match=r"no column \['ref_exps'\]"):
        build(tmp_path, "grit_metadata")
    (tmp_path / "grit/metadata/a.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(SettingError, match="no whole parquet"):
        build(tmp_path, "grit_metadata")


def test_a_table_damaged_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "grit/images").mkdir(parents=True)
    path = tmp_path / "grit/metadata/a.parquet"
    table(path, [record()] * 50)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + b"\xff" * 200 + whole[204:])  # page headers, which pyarrow parses
    with pytest.raises(SettingError, match="no whole parquet"):
        build(tmp_path, "grit_metadata")
