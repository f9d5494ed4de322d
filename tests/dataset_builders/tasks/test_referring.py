import builtins
import copy
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_builders import DATASETS, BuildOptions, DataFolders
from dataset_builders.errors import SettingError
from dataset_builders.readers.coco_images import coco_source
from dataset_builders.records import Object
from dataset_builders.tasks.referring import build, load_refs
from dataset_builders.validation import validate
from tests.dataset_builders.conftest import coco_records, collect, text_of


def refs() -> list[dict[str, Any]]:
    def ref(number: int, image_id: int, ann_id: int, split: str, *raw: str) -> dict[str, Any]:
        sentences = [
            {"sent_id": number * 10 + i, "raw": text, "sent": text.lower(), "tokens": text.split()}
            for i, text in enumerate(raw)
        ]
        return {
            "ref_id": number,
            "ann_id": ann_id,
            "image_id": image_id,
            "split": split,
            "sentences": sentences,
        }

    return [
        ref(0, 7, 2, "train", "The cat  at the bottom ", "lower cat"),
        ref(1, 7, 3, "val", "dog"),
        ref(2, 7, 3, "train", "the dog"),
    ]


IMAGES = coco_source("refer", file="refer/instances.json", folder="refer/train2014", num_buckets=4)


@pytest.fixture
def refer_root(tmp_path: Path) -> Any:
    def write(content: Any, *, protocol: int = 2) -> Path:
        folder = tmp_path / "refer"
        (folder / "train2014").mkdir(exist_ok=True, parents=True)
        (folder / "instances.json").write_text(json.dumps(coco_records()))
        if isinstance(content, str):
            (folder / "refs(unc).json").write_text(content)
        else:
            data = (
                content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol)
            )
            (folder / "refs(unc).p").write_bytes(data)
        return tmp_path

    return write


def build_refs(
    root: Path,
    split: str = "train",
    options: BuildOptions | None = None,
    *,
    suffix: str = "p",
    captions: bool = False,
) -> Any:
    return collect(
        build(
            DataFolders(str(root)),
            options or BuildOptions(),
            dataset="refcoco",
            refs=f"refer/refs(unc).{suffix}",
            instances="refer/instances.json",
            folder="refer/train2014",
            source=IMAGES,
            split=split,
            captions=captions,
        )
    )


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_golden_samples(refer_root: Any, protocol: int) -> None:
    built = build_refs(refer_root(refs(), protocol=protocol))
    assert built.ledger.used == {"image": 3, "box": 5, "category": 3, "record": 3}
    assert [sample.sample_id for sample in built.samples] == [
        f"refcoco/7/referring/{i}" for i in (0, 1, 20)
    ]
    first, second, third = built.samples
    assert text_of(first.turns[0]) == (
        "Please detect The cat at the bottom in this image. "
        "Answer the question with object indexes."
    )
    assert text_of(first.turns[1]) == "The cat at the bottom[0]"
    assert first.objects[0] == Object(box=(90.0, 70.0, 100.0, 80.0), label="cat")
    assert first.image_uri == "refer/train2014/seven.jpg"
    assert first.absent_labels is None
    assert text_of(second.turns[1]) == "lower cat[0]"
    assert text_of(third.turns[1]) == "the dog[1]"
    assert [text_of(s.turns[1]) for s in build_refs(refer_root(refs()), "val").samples] == [
        "dog[1]"
    ]


def test_a_pickle_written_by_python_2_is_read(refer_root: Any) -> None:
    # protocol 0 byte strings, as cPickle of Python 2 wrote them: S'...' entries
    body = b"(lp1\n(dp2\nS'split'\nS'train'\nsS'image_id'\nI7\nsS'ann_id'\nI3\ns"
    body += b"S'sentences'\n(lp3\n(dp4\nS'raw'\nS'the dog caf\\xc3\\xa9'\nsS'sent_id'\nI5\nsasa."
    built = build_refs(refer_root(body))
    assert text_of(built.samples[0].turns[1]) == "the dog café[1]"
    undecodable = build_refs(refer_root(body.replace(b"\\xc3\\xa9", b"\\xff")))
    assert undecodable.reasons == {"unsafe_text": 1}


class Hostile:
    """Runs a command when it is unpickled freely."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.plan = (function, arguments)

    def __reduce__(self) -> Any:
        return self.plan


@pytest.mark.parametrize("function", [os.system, builtins.exec, os.mkdir, OrderedDict, getattr])
def test_a_hostile_pickle_raises_and_runs_nothing(tmp_path: Path, function: Any) -> None:
    target = tmp_path / "ran"
    argument = {os.system: f"touch {target}", os.mkdir: str(target)}.get(
        function, f"open({str(target)!r}, 'w')"
    )
    path = tmp_path / "refs(x).p"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps([Hostile(function, argument)], protocol=protocol))
        with pytest.raises(
            SettingError, match=r"refs\(x\)\.p is not a REFER pickle of plain data.*only plain data"
        ):
            load_refs(path)
        assert not target.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x02Pabc\n.",
        pickle.dumps([1])[:-3],
        b"\x82\x01.",
    ],
)
def test_broken_pickles_are_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.p").write_bytes(data)
    with pytest.raises(SettingError, match=r"a\.p is not a REFER pickle"):
        load_refs(tmp_path / "a.p")


@given(st.binary(max_size=80))
def test_random_bytes_never_do_more_than_raise(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.mktemp("p") / "a.p"
    path.write_bytes(b"\x80\x02" + data)
    try:
        assert isinstance(load_refs(path), list)
    except SettingError as error:
        assert "a.p" in str(error)  # noqa: PT017 - it may pass too


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ann_id": 999}, "unknown_object"),
        ({"ann_id": 1}, "unknown_object"),  # of another image
        ({"image_id": 999}, "unknown_image"),
        ({"image_id": None}, "malformed"),
        ({"image_id": 10**30}, "unknown_image"),
        ({"ann_id": []}, "malformed"),
        ({"ann_id": [-1, 3]}, "unknown_object"),
        ({"ann_id": [3, None]}, "malformed"),
        ({"sentences": "text"}, "malformed"),
        ({"sentences": []}, "malformed"),
        ({"sentences": [{"raw": "", "sent_id": 77}]}, "empty_text"),
        ({"sentences": [{"raw": "the </ground>", "sent_id": 77}]}, "unsafe_text"),
        ({"sentences": [{"raw": "the\u2028dog", "sent_id": 77}]}, "unsafe_text"),
        ({"sentences": [{"raw": "the \u202egod", "sent_id": 77}]}, "unsafe_text"),
        ({"sentences": [{"raw": "x" * 5000, "sent_id": 77}]}, "text_too_long"),
        ({"sentences": [{"raw": "dog", "sent_id": 0}]}, "duplicate_id"),
        ({"sentences": [{"raw": 4, "sent_id": 77}]}, "malformed"),
        ({"split": 4}, "malformed"),
    ],
)
def test_bad_refs_are_rejected_with_their_reason(
    refer_root: Any, change: dict, reason: str
) -> None:
    rows = refs()
    rows[2] |= change
    built = build_refs(refer_root(rows))
    assert built.reasons == {reason: 1}
    assert built.ledger.read["record"] == 3


def test_a_crowd_cannot_be_meant(refer_root: Any) -> None:
    rows = refs()
    rows[2] |= {"image_id": 3, "ann_id": 5}
    assert build_refs(refer_root(rows)).reasons == {"contradiction": 1}


def test_an_unknown_split_or_a_missing_file_is_named(refer_root: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no refs of split 'testA'"):
        build_refs(refer_root(refs()), "testA")
    with pytest.raises(SettingError, match=r"refs\(drawn\)\.p not found"):
        next(DATASETS["drawn_refs_train"].samples(DataFolders(str(tmp_path)), BuildOptions()))


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_mutated_refs_are_used_or_rejected(data: Any, refer_root: Any) -> None:
    rows: list[Any] = copy.deepcopy(refs())
    junk = (
        st.none()
        | st.booleans()
        | st.integers(-3, 99)
        | st.text(max_size=9)
        | st.lists(st.integers(), max_size=2)
    )
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, 2))
        target = rows[index]
        if not isinstance(target, dict) or (data.draw(st.booleans()) and data.draw(st.booleans())):
            rows[index] = data.draw(junk)
            continue
        sentences = target.get("sentences")
        if (
            data.draw(st.booleans())
            and isinstance(sentences, list)
            and sentences
            and isinstance(sentences[0], dict)
        ):
            target = sentences[0]
        target[data.draw(st.sampled_from(sorted(target)))] = data.draw(junk)
    root = refer_root(rows)
    try:
        built = build_refs(root)
    except SettingError as error:
        assert "no refs of split" in str(error)  # noqa: PT017 - it may pass too
        return
    for sample in built.samples:
        validate(sample)


def test_several_targets_and_none(refer_root: Any) -> None:
    rows = refs()
    rows[0] |= {"ann_id": [4, 2, 4]}
    rows[2] |= {"ann_id": [-1]}
    for built in (
        build_refs(refer_root(rows)),
        build_refs(refer_root(json.dumps(rows)), suffix="json"),
    ):
        assert built.rejects == []
        first, second, third = built.samples
        assert text_of(first.turns[1]) == "The cat at the bottom[2,0]"
        assert text_of(second.turns[1]) == "lower cat[2,0]"
        assert (third.task, third.sample_id) == ("rejection", "refcoco/7/rejection/20")
        assert text_of(third.turns[0]) == (
            "Please detect the dog in this image. Answer the question with object indexes."
        )
        assert text_of(third.turns[1]) == "None"
        assert (third.absent_labels, third.absent_regime) == (("the dog",), "constructed")
        assert len(third.objects) == 3


def test_no_target_is_a_contradiction_where_the_same_words_have_one(refer_root: Any) -> None:
    rows = refs()
    rows[2]["sentences"][0]["raw"] = "Lower  CAT"
    rows[2] |= {"ann_id": [-1]}
    built = build_refs(refer_root(rows))
    assert built.reasons == {"contradiction": 1}
    assert built.tasks == {"referring": 2}
    # and where an object of the image is labelled so
    rows[2]["sentences"][0]["raw"] = "dog"
    assert build_refs(refer_root(rows)).reasons == {"contradiction": 1}


def test_captions_of_regions(refer_root: Any) -> None:
    rows = refs()
    rows[0] |= {"ann_id": [4, 2]}
    built = build_refs(refer_root(rows), captions=True)
    assert built.tasks == {"referring": 3, "region_caption": 1}
    caption = built.samples[-1]
    assert caption.sample_id == "refcoco/7/region_caption/20"
    assert text_of(caption.turns[0]) == "Provide a brief description for [1]."
    assert text_of(caption.turns[1]) == "the dog"
    assert caption.turns[1].parts[0].objects == ()
    assert caption.absent_labels is None
    # three expressions with one target, as many captions as the option allows
    for most, expected in ((0, 0), (2, 2), (8, 3)):
        built = build_refs(
            refer_root(refs()), options=BuildOptions(region_texts=most), captions=True
        )
        assert built.tasks["region_caption"] == expected
        assert built.ledger.used["record"] == 3


def test_more_targets_than_a_prompt_holds(refer_root: Any) -> None:
    rows = refs()
    rows[0] |= {"ann_id": [4, 2]}
    assert build_refs(refer_root(rows), options=BuildOptions(max_objects=1)).reasons == {
        "too_many_regions": 2
    }


def test_the_drawn_world(drawn_root: Path) -> None:
    folders = DataFolders("nowhere", {"drawn": str(drawn_root)})
    listed = load_refs(drawn_root / "refs" / "refs(drawn).p")
    for split in ("train", "val"):
        built = collect(DATASETS[f"drawn_refs_{split}"].samples(folders, BuildOptions()))
        assert built.rejects == []
        assert len(built.samples) > 20
        expected = [
            (
                f"drawn_refs_{split}/{ref['image_id']}/referring/{sentence['sent_id']}",
                sentence["raw"],
            )
            for ref in listed
            if ref["split"] == split
            for sentence in ref["sentences"]
        ]
        assert [(s.sample_id, s.turns[1].parts[0].text) for s in built.samples] == expected
        for sample in built.samples:
            assert sample.task == "referring"
            expression = sample.turns[1].parts[0]
            label = sample.objects[expression.objects[0]].label
            assert (expression.text or "").split()[-1] in {*label.split(), "shape"}
            assert folders.path(sample.image_uri).exists()
