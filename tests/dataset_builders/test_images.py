import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset_builders import DataFolders
from dataset_builders.images import BadImage, bucket_of, decode_image, read_image_bytes, safe_join


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reason_of(data: bytes, **options: int) -> str:
    with pytest.raises(BadImage) as error:
        decode_image(data, **options)
    assert "at 0x" not in error.value.detail
    return error.value.reason


def test_bucket_is_the_documented_hash() -> None:
    # sha256("9") = 19581e27..., 0x19581e27 = 425205287
    assert bucket_of("9", 8) == 425205287 % 8
    assert bucket_of("9", 1) == 0


@given(st.text(max_size=20), st.integers(1, 300))
def test_bucket_is_in_range(image_id: str, num_buckets: int) -> None:
    assert 0 <= bucket_of(image_id.encode("ascii", "ignore").decode(), num_buckets) < num_buckets


def test_exif_orientation_is_applied() -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10, :10] = 255  # white top left
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left: show it turned to the right
    image = decode_image(encoded(Image.fromarray(pixels), "JPEG", exif=exif, quality=95))
    assert image.size == (20, 30)
    assert np.asarray(image)[4, 15].min() > 200  # top right now
    assert np.asarray(image)[4, 4].max() < 60


def test_modes_become_rgb() -> None:
    colour = Image.new("RGB", (8, 6), (204, 0, 51))
    for data in (
        encoded(colour.convert("P"), "PNG"),
        encoded(colour.convert("CMYK"), "JPEG", quality=95),
    ):
        image = decode_image(data)
        assert image.mode == "RGB"
        assert np.abs(np.asarray(image)[3, 3].astype(int) - (204, 0, 51)).max() < 12


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = Image.fromarray(np.full((4, 4), 0x8040, np.uint16))
    assert np.asarray(decode_image(encoded(grey, "PNG")))[0, 0].tolist() == [0x80] * 3


def test_truncated_and_foreign_bytes_are_undecodable() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for kind in ("JPEG", "PNG"):
        data = encoded(Image.fromarray(noise), kind)
        assert reason_of(data[: len(data) // 2]) == "undecodable_image"
    assert reason_of(b"") == "undecodable_image"
    assert reason_of(b"<html>404</html>") == "undecodable_image"


def test_bomb_is_refused_before_it_is_decoded() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    for side in (9_000, 100_000):  # above our limit; above the size at which Pillow itself refuses
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(b"\0"))
            + chunk(b"IEND", b"")
        )
        assert reason_of(bomb) == "image_too_large"
    assert reason_of(encoded(Image.new("RGB", (10, 10)), "PNG"), max_pixels=99) == "image_too_large"
    assert decode_image(encoded(Image.new("RGB", (10, 10)), "PNG"), max_pixels=100).size == (10, 10)


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 255))
def test_broken_files_only_raise_bad_image(tail: bytes, position: int, value: int) -> None:
    data = bytearray(encoded(Image.new("RGB", (16, 16), (9, 99, 199)), "PNG"))
    data[position % len(data)] = value
    try:
        decode_image(bytes(data) + tail)
    except BadImage as error:
        assert "at 0x" not in str(error)  # noqa: PT017 - it may pass too


def test_bad_image_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(BadImage("missing_image", "a.jpg")))
    assert (error.reason, error.detail) == ("missing_image", "a.jpg")


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd",
        "../secret.jpg",
        "a/../../secret.jpg",
        "a\\..\\b.jpg",
        "a\0b.jpg",
        "",
        ".",
        "./a.jpg",
        "a//b.jpg",
        "a/",
        "C:/a.jpg",
        "a\nb.jpg",
        "out/secret.jpg",
        "loop/a.jpg",
        "x" * 5000,
    ],
)
def test_paths_cannot_leave_their_root(tmp_path: Path, uri: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.jpg").write_bytes(b"s")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(BadImage) as error:
        read_image_bytes(DataFolders(str(tmp_path)), f"root/{uri}")
    assert error.value.reason in {"unsafe_path", "missing_image"}
    if len(uri) < 100:
        assert error.value.reason == "unsafe_path"


def test_links_inside_the_root_and_a_linked_root_are_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").write_bytes(b"abc")
    (tmp_path / "real" / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert read_image_bytes(DataFolders(str(tmp_path)), "linked/b.jpg") == b"abc"
    assert (
        read_image_bytes(DataFolders("/nowhere", {"x": str(tmp_path / "linked")}), "x/b.jpg")
        == b"abc"
    )
    assert safe_join(str(tmp_path / "linked"), "a.jpg") == tmp_path.resolve() / "real" / "a.jpg"


def test_missing_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for uri in ("none.jpg", "folder"):
        with pytest.raises(BadImage) as error:
            read_image_bytes(DataFolders(str(tmp_path.parent)), f"{tmp_path.name}/{uri}")
        assert error.value.reason == "missing_image"
        assert str(tmp_path) not in str(error.value)


def test_folders_are_places_whatever_the_directory_of_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "coco").mkdir(parents=True)
    (tmp_path / "moved").mkdir()
    (tmp_path / "data" / "coco" / "a.jpg").write_bytes(b"a")
    (tmp_path / "moved" / "b.jpg").write_bytes(b"b")
    monkeypatch.chdir(tmp_path)
    folders = pickle.loads(pickle.dumps(DataFolders("data", {"vg": "moved"})))
    monkeypatch.chdir("/")
    assert read_image_bytes(folders, "coco/a.jpg") == b"a"
    assert read_image_bytes(folders, "vg/b.jpg") == b"b"
    assert folders.matches("vg/*.jpg") == ["vg/b.jpg"]
    assert folders.matches("vg/none.jpg") == []
