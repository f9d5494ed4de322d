from pathlib import Path
from types import SimpleNamespace

import pytest

from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.referring.flickr30k import (
    DATASETS,
    MAX_FILE_BYTES,
    read_sentence,
    read_xml,
)
from dataset_builders.errors import SettingError
from dataset_builders.records import BadRecord, Object
from dataset_builders.spec import BuildOptions
from tests.dataset_builders.conftest import collect, text_of

(SPEC,) = DATASETS


def boxed(names: str | list[str], *corners: object) -> str:
    found = "".join(
        f"<name>{name}</name>" for name in ([names] if isinstance(names, str) else names)
    )
    tags = ("xmin", "ymin", "xmax", "ymax")
    sides = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(tags, corners, strict=False))
    return f"<object>{found}<bndbox>{sides}</bndbox></object>"


def xml(*objects: str, width: object = 200, height: object = 100, head: str = "") -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"{head}<annotation><filename>1.jpg</filename>{size}{''.join(objects)}</annotation>"


SCENE = "<object><name>31</name><scene>1</scene><nobndbox>0</nobndbox></object>"
HIDDEN = "<object><name>32</name><scene>0</scene><nobndbox>1</nobndbox></object>"


def write(
    root: Path, images: dict[str, tuple[str | bytes, str | bytes]], *, unrelated: str = ""
) -> None:
    """images: name -> (sentences, xml)."""
    folder = root / "flickr30k_entities"
    for place in ("Sentences", "Annotations"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (root / "flickr30k/flickr30k-images").mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text("".join(f"{name}\n" for name in images))
    for name, texts in images.items():
        for text, file in zip(
            texts, (f"Sentences/{name}.txt", f"Annotations/{name}.xml"), strict=True
        ):
            (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    if unrelated:
        (folder / "UNRELATED_CAPTIONS").write_text(unrelated)


def build(root: Path, options: BuildOptions | None = None) -> SimpleNamespace:
    return collect(SPEC.samples(DataFolders(str(root)), options or BuildOptions()))


GOOD = ("[/EN#1/people A man] walks .\n", xml(boxed("1", 1, 1, 50, 50)))


def test_golden_images(tmp_path: Path) -> None:
    guys = (
        (
            "[/EN#11/people Two young guys] with [/EN#12/body/other shaggy hair] in "
            "[/EN#31/scene the yard] .\n"
            "[/EN#11/people Two men] look at [/EN#0/notvisual it] and [/EN#32/other a bird] .\n"
        ),
        xml(
            boxed("11", 1, 1, 60, 100),
            boxed(["11", "12"], 100, 1, 150, 90),
            SCENE,
            HIDDEN,
            boxed("99", 5, 5, 10, 10),
        ),
    )
    bare = ("[/EN#0/notvisual Nothing] to see\n", xml())
    write(tmp_path, {"1000092795": guys, "7": GOOD, "8": bare})
    built = build(tmp_path)
    assert built.ledger.used == {"image": 3, "box": 4, "record": 3}
    assert built.reasons == {"unknown_object": 1}  # a caption without any box
    assert [(s.sample_id, text_of(s.turns[1])) for s in built.samples] == [
        (
            "flickr30k_entities/1000092795/grounding/0",
            "Two young guys[0,1] with shaggy hair[1] in the yard .",
        ),
        ("flickr30k_entities/1000092795/grounding/1", "Two men[0,1] look at it and a bird ."),
        ("flickr30k_entities/1000092795/referring/1000092795-0", "Two young guys[0,1]"),
        ("flickr30k_entities/1000092795/referring/1000092795-1", "shaggy hair[1]"),
        ("flickr30k_entities/7/grounding/0", "A man[0] walks ."),
    ]
    assert built.samples[0].objects == (
        Object(box=(1.0, 1.0, 60.0, 100.0), label="Two young guys"),
        Object(box=(100.0, 1.0, 150.0, 90.0), label="Two young guys"),
        Object(box=(5.0, 5.0, 10.0, 10.0), label="object"),
    )
    first = built.samples[0]
    assert (first.image_source, first.image_id, first.width, first.height) == (
        "flickr30k",
        "1000092795",
        200,
        100,
    )
    assert first.image_uri == "flickr30k/flickr30k-images/1000092795.jpg"
    fewer = build(tmp_path, BuildOptions(region_texts=1, single_names=0))
    assert [sample.sample_id for sample in fewer.samples] == [
        "flickr30k_entities/1000092795/grounding/0",
        "flickr30k_entities/7/grounding/0",
    ]
    assert fewer.ledger.used == {"image": 3, "box": 4, "record": 3}


@pytest.mark.parametrize(
    ("line", "caption", "phrases"),
    [
        ("[/EN#1/people A man] , [/EN#2/other a dog]", "A man , a dog", ["A man", "a dog"]),
        ("naïve 😀 [/EN#3/other/toys the  ball ] .", "naïve 😀 the  ball .", ["the  ball"]),
        ("[/EN#0/notvisual it] rains", "it rains", []),
        ("no phrase [at all]", "no phrase [at all]", []),
    ],
)
def test_sentences(line: str, caption: str, phrases: list[str]) -> None:
    read, spans = read_sentence(line)
    assert read == caption
    assert [read[start:end] for (start, end), _ in spans] == phrases


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[/EN#1/people A man walks", "malformed"),
        ("[/EN#x/people A man] walks", "malformed"),
        ("[/EN#1/people ] walks", "empty_text"),
        ("[/EN#1/people A <region1> man]", "unsafe_text"),
        ("[/EN#1/people A \udcff man]", "unsafe_text"),
    ],
)
def test_bad_sentences(line: str, reason: str) -> None:
    with pytest.raises(BadRecord) as caught:
        read_sentence(line)
    assert caught.value.reason == reason


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "cccccccccc">'
    '<!ENTITY d "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
    "<annotation>&d;</annotation>"
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        '<!DOCTYPE a SYSTEM "http://example.org/a.dtd"><annotation/>',
        "<annotation>&x;</annotation>",
        "<annotation>",
        "",
        '<?xml version="1.0" encoding="no-such"?><annotation/>',
    ],
)
def test_xml_that_declares_or_breaks_is_malformed(text: str) -> None:
    with pytest.raises(BadRecord, match="malformed"):
        read_xml(text.encode())


def test_a_doctype_hidden_in_another_encoding_is_malformed() -> None:
    with pytest.raises(BadRecord, match="malformed"):
        read_xml(BOMB.encode("utf-16"))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ((GOOD[0], BOMB), "malformed"),
        ((GOOD[0], xml(width="many")), "malformed"),
        ((GOOD[0], xml(height=0)), "bad_size"),
        ((GOOD[0], b"<annotation>" + b" " * MAX_FILE_BYTES + b"</annotation>"), "text_too_long"),
    ],
)
def test_images_with_a_broken_xml(tmp_path: Path, bad: tuple[str, str], reason: str) -> None:
    write(tmp_path, {"1": bad, "2": GOOD})
    built = build(tmp_path)
    assert built.reasons == {reason: 1}
    assert [sample.image_id for sample in built.samples] == ["2"]


def test_rejected_boxes_leave_their_phrases_as_text(tmp_path: Path) -> None:
    lines = "[/EN#1/people Two men] with [/EN#2/other a big ball] and [/EN#3/other a red hat]\n"
    boxes = (
        boxed("1", 1, 1, 50, 50),
        boxed("1", 60, 1, 50, 50),
        boxed("2", 300, 1, 350, 50),
        boxed("2", 1, 1, "x", 50),
        boxed("3", 1, 1, 5, 5),
        boxed([], 1, 1, 5, 5),
    )
    write(tmp_path, {"1": (lines, xml(*boxes))})
    built = build(tmp_path, BuildOptions(single_names=0))
    assert built.reasons == {"inverted_box": 1, "outside_box": 1, "malformed": 2}
    assert [text_of(sample.turns[1]) for sample in built.samples] == [
        "Two men with a big ball and a red hat[1]"
    ]


def test_bad_captions_cost_themselves_alone(tmp_path: Path) -> None:
    lines = (
        "[/EN#1/people A <ground> man]\n[/EN#1/people A man] sits\n\n"
        "[/EN#1/people A man\n[/EN#1/people He]\n"
    )
    write(
        tmp_path, {"1": (lines, GOOD[1])}, unrelated="# format: <imageID> <sentence number>\n1 4\n"
    )
    built = build(tmp_path)
    assert built.reasons == {"unsafe_text": 1, "malformed": 1, "contradiction": 1}
    assert [sample.sample_id for sample in built.samples] == ["flickr30k_entities/1/grounding/1"]


def test_names_that_lead_elsewhere_and_files_that_lack(tmp_path: Path) -> None:
    write(tmp_path, {"1": GOOD})
    (tmp_path / "flickr30k_entities/train.txt").write_text("1\n../1\n/etc/passwd\n1\n5\n")
    built = build(tmp_path)
    assert built.reasons == {"unsafe_path": 2, "duplicate_id": 1, "unknown_image": 1}
    assert len(built.samples) == 1


def test_too_many_boxes(tmp_path: Path) -> None:
    many = xml(*(boxed("1", 1 + k, 1, 60 + k, 50) for k in range(5)))
    write(tmp_path, {"1": (GOOD[0], many), "2": GOOD})
    built = build(tmp_path, BuildOptions(max_objects=4))
    assert built.reasons == {"too_many_regions": 2}  # the caption, and the image's expressions


def test_wrong_folders_raise(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"train.txt not found(.|\n)*flickr30k_entities/Sentences/"
    ):
        build(tmp_path)
    sizes = xml(*(boxed("1", 150, 80 - k, 45, 15 + k) for k in range(30)))  # x, y, width, height
    write(tmp_path, {"1": (GOOD[0], sizes)})
    with pytest.raises(SettingError, match="declared xyxy"):
        build(tmp_path)
    (tmp_path / "flickr30k_entities/train.txt").write_text("\n")
    with pytest.raises(SettingError, match=r"train.txt lists no image"):
        build(tmp_path)


def test_a_list_of_unrelated_captions_in_another_encoding_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"1": GOOD})
    (tmp_path / "flickr30k_entities/UNRELATED_CAPTIONS").write_bytes(b"# caf\xe9\n1 1\n")
    with pytest.raises(SettingError, match="UNRELATED_CAPTIONS is not UTF-8"):
        build(tmp_path)
