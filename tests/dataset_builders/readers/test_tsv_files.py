from pathlib import Path

import pytest

from dataset_builders.containers import read_line
from dataset_builders.data_folders import DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.images import read_image_bytes
from dataset_builders.readers.tsv_files import (
    MAX_LINE_BYTES,
    ImageTsv,
    annotation_lines,
    tsv_source,
)
from dataset_builders.records import BadRecord, ImageRef

# three pictures of 9, 12 and 6 bytes: base64 of 12, 16 and 8 letters, the second one in b'...'
LINES = [b"k0\tYWFhYWFhYWFh\n", b"k1\tb'YmJiYmJiYmJiYmJi'\n", b"k2\tY2NjY2Nj\n"]
PICTURES = [b"a" * 9, b"b" * 12, b"c" * 6]
WHOLE = b"".join(LINES)
STARTS = [0, 16, 39]
PATTERN, INDEX = "x/image_part_*.tsv", "x/image.tsv.lineidx"


def write(root: Path, *cuts: int, starts: list[int] | None = None) -> DataFolders:
    """Write the TSV, cut at the given bytes, and its index."""
    (root / "x").mkdir(exist_ok=True)
    for part, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(WHOLE)], strict=True)):
        (root / f"x/image_part_{part}.tsv").write_bytes(WHOLE[start:end])
    (root / INDEX).write_text("".join(f"{start}\n" for start in starts or STARTS))
    return DataFolders(str(root))


@pytest.mark.parametrize("first", range(1, len(WHOLE)))
def test_a_picture_is_read_wherever_the_parts_are_cut(tmp_path: Path, first: int) -> None:
    for second in range(first, len(WHOLE), 5):
        folders = write(tmp_path, first, second)
        images = ImageTsv.of(folders, PATTERN, INDEX)
        assert [read_image_bytes(folders, images.uri(start)) for start in STARTS] == PICTURES


def test_uris_say_the_part_and_the_byte_in_it(tmp_path: Path) -> None:
    images = ImageTsv.of(write(tmp_path, 20, 39), PATTERN, INDEX)
    assert images.ends == (20, 39, 51)
    assert [images.uri(start) for start in STARTS] == [
        "x/image_part_0.tsv#0",
        "x/image_part_0.tsv#16",
        "x/image_part_2.tsv#0",
    ]
    with pytest.raises(BadRecord, match=r"unknown_image: byte 51 of image files of 51 bytes"):
        images.uri(51)


def test_ten_parts_are_ordered_by_number(tmp_path: Path) -> None:
    folders = write(tmp_path, *range(4, 48, 4))
    images = ImageTsv.of(folders, PATTERN, INDEX)
    assert images.names[9:] == ("x/image_part_9.tsv", "x/image_part_10.tsv", "x/image_part_11.tsv")
    assert [read_image_bytes(folders, images.uri(start)) for start in STARTS] == PICTURES


def test_other_files_end_where_they_end(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"k\tYWFh")
    (tmp_path / "b.tsv").write_bytes(b"more")
    assert read_line(tmp_path / "a.tsv", 0, 100) == b"k\tYWFh"
    folders = write(tmp_path, 20)
    assert read_line(folders.path("x/image_part_1.tsv"), 19, 100) == LINES[2].strip()
    with pytest.raises(BadRecord, match="image_too_large"):
        read_line(folders.path("x/image_part_0.tsv"), 16, 10)  # its end lies in the next part


def test_missing_parts_and_foreign_indexes_raise(tmp_path: Path) -> None:
    folders = write(tmp_path, 20, 39)
    (tmp_path / "x/image_part_1.tsv").rename(tmp_path / "x/away")
    with pytest.raises(SettingError, match=r"parts \[0, 2\] are there"):
        ImageTsv.of(folders, PATTERN, INDEX)
    (tmp_path / "x/away").rename(tmp_path / "x/image_part_1.tsv")
    (tmp_path / "x/image_part_2.tsv").unlink()
    with pytest.raises(
        SettingError, match=r"ends with the byte 39.*hold 39 bytes: a part is missing"
    ):
        ImageTsv.of(folders, PATTERN, INDEX)
    (tmp_path / INDEX).write_text("")
    with pytest.raises(SettingError, match="ends with the byte None"):
        ImageTsv.of(folders, PATTERN, INDEX)


def test_the_source_lists_the_pictures_of_the_index(tmp_path: Path) -> None:
    folders = write(tmp_path, 20)
    source = tsv_source("x", images=PATTERN, lineidx=INDEX, num_buckets=4)
    refs = [item for item in source.images(folders) if isinstance(item, ImageRef)]
    assert [(ref.image_id, ref.image_uri) for ref in refs] == [
        ("0", "x/image_part_0.tsv#0"),
        ("16", "x/image_part_0.tsv#16"),
        ("39", "x/image_part_1.tsv#19"),
    ]
    for wrong in ([16, 0, 39], [0, 0, 39]):
        write(tmp_path, 20, starts=wrong)
        with pytest.raises(SettingError, match=r"line 2 is .* not a byte after"):
            list(source.images(folders))
    (tmp_path / INDEX).write_text("zero\n39\n")
    with pytest.raises(SettingError, match="line 1 is"):
        list(source.images(folders))


def test_annotation_lines(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    content = [
        b'16\t{"a": "\xe2\x9c\x85\\tb"}',
        b"",
        b"16",
        b"-3\t{}",
        b"x\t{}",
        b"0\t{",
        b'0\t"\xff"',
        b"0\t" + b"[" * 100_000,
        b"0\t" + b"1" * MAX_LINE_BYTES,
        b"39\t[NaN]",
    ]
    (tmp_path / "x/a.tsv").write_bytes(b"\n".join(content))
    lines = list(annotation_lines(DataFolders(str(tmp_path)), "x/a.tsv"))
    assert [name for name, _ in lines] == [f"a.tsv/{n}" for n in (0, 2, 3, 4, 5, 6, 7, 8, 9)]
    first, *bad, last = [line for _, line in lines]
    assert not isinstance(first, BadRecord)
    assert (first.number, first.offset, first.record) == (0, 16, {"a": "✅\tb"})
    assert [error.reason for error in bad if isinstance(error, BadRecord)] == ["malformed"] * 6 + [
        "text_too_long"
    ]
    assert not isinstance(last, BadRecord)
    assert (last.number, last.offset) == (9, 39)
