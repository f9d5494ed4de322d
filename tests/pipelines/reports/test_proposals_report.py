import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dataset_builders import DataFolders
from dataset_builders.images import bucket_of
from pipelines.artifacts import Artifact, parquet_bytes
from pipelines.errors import SettingError
from pipelines.evaluation.metrics.cases import Scene, as_boxes
from pipelines.evaluation.metrics.comparison import most_different
from pipelines.evaluation.metrics.proposals import Proposed
from pipelines.evaluation.score import evaluate_proposals
from pipelines.evaluation.stored_inputs import load_scenes
from pipelines.reports.drawing import CROWD
from pipelines.reports.plots import PAIR
from pipelines.reports.proposals_cards import TRUE, _marks
from pipelines.reports.proposals_report import diff_page
from pipelines.row_accounting import entry
from pipelines.schemas import PROPOSALS_SCHEMA
from tests.pipelines.evaluation.small_evaluation import samples_artifact, small_world

HOSTILE = "<script>alert(1)</script>"
IMAGES = pa.schema([("image_id", pa.string()), ("image_uri", pa.string())])


def cache(
    root: Path, name: str, found: dict[str, tuple], *, buckets: int = 4, mark: str = "a", uri=None
) -> Artifact:
    """Make a finished cache of `found`: image_id to (boxes, scores), or (reason,) without boxes."""
    artifact = Artifact(root=str(root), kind="proposals", name=name, fingerprint=mark * 16)
    for bucket in range(buckets):
        ids = sorted(i for i in found if bucket_of(i, buckets) == bucket)
        rows = [
            {"image_id": i, "bucket": bucket, "width": 128, "height": 128, **columns(found[i])}
            for i in ids
        ]
        listed = [{"image_id": i, "image_uri": (uri or "drawn/val/{}.jpg").format(i)} for i in ids]
        files = {
            f"part-{bucket:05d}.parquet": parquet_bytes(
                pa.Table.from_pylist(rows, schema=PROPOSALS_SCHEMA)
            ),
            f"images-{bucket:05d}.parquet": parquet_bytes(
                pa.Table.from_pylist(listed, schema=IMAGES)
            ),
        }
        lost = [row["status"] for row in rows if row["status"] != "ok"]
        artifact.commit_bucket(bucket, files, entry(len(rows), len(rows) - len(lost), lost))
    config = {"image_source": name.split("/")[0], "detector": {"type": HOSTILE}}
    artifact.commit_buckets(
        version=1, config=config, inputs={"images": "0" * 16}, num_buckets=buckets
    )
    return artifact


def columns(found: tuple) -> dict:
    if len(found) == 1:
        return {"rotation": 0, "boxes": [], "scores": [], "status": found[0], "error": "why"}
    boxes, scores = found
    return {"rotation": 1, "boxes": boxes, "scores": scores, "status": "ok", "error": None}


class World:
    """Ten scenes; A has every true box with score 0.9, B the first of each image with score 0.5."""

    def __init__(self, folder: Path) -> None:
        self.root, self.data = folder / "root", folder / "data"
        drawn = small_world(self.data)
        self.samples = samples_artifact(self.root, drawn, "drawn_val")
        self.scenes, _ = load_scenes(self.samples)
        true = {s.image_id: s.boxes[~np.array(s.ignore, bool)].tolist() for s in self.scenes}
        self.exact = {i: (boxes, [0.9] * len(boxes)) for i, boxes in true.items()}
        self.first = {i: (boxes[:1], [0.5] * len(boxes[:1])) for i, boxes in true.items()}
        self.uri = self._uri()
        self.a, self.b = self.make("exact", self.exact), self.make("first", self.first)

    def _uri(self) -> str:
        row = self.samples.read_table("part-00000.parquet").to_pylist()[0]
        return row["image_uri"].replace(Path(row["image_uri"]).stem, "{:0>12}")

    def make(self, name: str, found: dict, **options) -> Artifact:
        return cache(self.root, f"drawn_val/{name}", found, uri=self.uri, **options)

    def compare(self, a: Artifact, b: Artifact, **options):
        labelled = options.pop("labelled", {"drawn_val": self.samples})
        return diff_page(a, b, labelled, folders=DataFolders(str(self.data)), **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("diff"))


def tables(text: str) -> dict[str, list[list[str]]]:
    """Return the rows of cells below the header, by title."""
    found = {}
    for block in text.split("\n\n"):
        title, _, _, *rows = block.splitlines()
        found[title] = [re.split(r"\s{2,}", row) for row in rows]
    return found


def test_the_metrics_are_those_of_each_cache(world: World) -> None:
    report = world.compare(world.a, world.b)
    shown = tables(report.text)
    metrics = [evaluate_proposals(found, world.samples) for found in (world.a, world.b)]
    recall = {row[1]: row[2:] for row in shown["recall"]}
    assert set(recall) == {f"{n}@{k}" for n in ("AR", "R50", "R75") for k in (10, 100, 300)} | {
        "oracle AP"
    }
    for heading, (first, second, points) in recall.items():
        name = heading.lower().replace(" ", "_")
        assert [float(first), float(second)] == [round(100 * m[name], 1) for m in metrics]
        assert float(points) == pytest.approx(
            100 * (metrics[1][name] - metrics[0][name]), abs=0.051
        )
    assert recall["R75@10"][0] == "100.0"
    objects = sum(len(boxes) for boxes, _ in world.exact.values())
    share = f"{100 * sum(bool(boxes) for boxes, _ in world.first.values()) / objects:.1f}"
    assert recall["R50@100"][1] == share
    sizes = {row[1]: row[2] for row in shown["recall by size"]}
    assert {f"ar_{size}@300" for size in sizes} == {
        name for name in metrics[0] if name.startswith("ar_")
    }
    assert f"{objects} objects on 10 images" in report.html


def test_caches_agreement_and_calibration(world: World) -> None:
    shown = tables(world.compare(world.a, world.b).text)
    objects = sum(len(boxes) for boxes, _ in world.exact.values())
    firsts = sum(len(boxes) for boxes, _ in world.first.values())
    letters = {row[0]: row[1:] for row in shown["caches"]}
    assert letters["A"][:5] == ["exact", "a" * 16, "10", "0", "0"]
    assert letters["A"][5] == f"{objects / 10:.1f}"
    assert letters["B"][5:8] == [f"{firsts / 10:.1f}", "1", "1"]
    share = f"{100 * firsts / objects:.1f}"
    everything = [
        "all",
        str(objects),
        str(firsts),
        str(firsts),
        "1.000",
        share,
        "100.0",
        share,
        "100.0",
    ]
    assert shown["agreement"][0] == everything
    assert shown["agreement"][1][0] == "best 10"
    judged = {row[1]: row[2:] for row in shown["calibration"]}
    assert judged == {
        "boxes on an object, %": ["100.0", "100.0"],
        "calibration error": ["0.100", "0.500"],
        "rank correlation": ["-", "-"],
    }


def test_images_show_both_sets_and_what_they_find(world: World) -> None:
    page = world.compare(world.a, world.b, num_images=3).html
    assert page.count('<article class="card">') == 3
    most = max(len(boxes) for boxes, _ in world.exact.values())
    assert f">A finds {most - 1} more</span>" in page
    assert f"recall 100 %: {most} of {most}, {most} boxes" in page
    assert f"recall {100 / most:.0f} %: 1 of {most}, 1 box<" in page
    assert "finds" not in world.compare(world.a, world.a, num_images=3).html
    assert '<article class="card">' not in world.compare(world.a, world.b, num_images=0).html


def test_marks_tell_the_sets_hits_and_objects_apart() -> None:
    scene = Scene(
        image_id="i",
        boxes=as_boxes([[0, 0, 10, 10], [50, 50, 90, 90]]),
        labels=("a", "b"),
        ignore=(False, True),
    )
    first = Proposed(
        image_id="i", boxes=as_boxes([[0, 0, 10, 9]] * 12), scores=np.ones(12, np.float32)
    )
    second = Proposed(image_id="i", boxes=as_boxes([[0, 0, 10, 4]]), scores=np.ones(1, np.float32))
    (difference,) = most_different([scene], {"i": first}, {"i": second}, 1)
    marks = [(mark.colour, mark.faint, mark.dashed) for mark in _marks(difference)]
    assert marks == [
        *[(PAIR[0], False, False)] * 10,  # twelve boxes, ten drawn
        (PAIR[1], True, False),
        (TRUE, False, True),
        (CROWD, False, True),
    ]


def test_images_that_cannot_be_read_are_counted(world: World) -> None:
    gone = cache(world.root, "drawn_val/gone", world.exact, mark="c", uri="drawn/nowhere/{}.jpg")
    page = world.compare(gone, world.b, num_images=3).html
    assert "Not shown: 3 missing_image." in page
    assert '<article class="card">' not in page
    outside = cache(
        world.root, "drawn_val/outside", world.exact, mark="d", uri="drawn/../../{}.jpg"
    )
    assert "Not shown: 3 unsafe_path." in world.compare(outside, world.b, num_images=3).html


def test_missing_rows_rejects_and_empty_caches(world: World) -> None:
    ids = sorted(world.exact)
    partial = {i: world.exact[i] for i in ids[2:]} | {
        ids[2]: ("undecodable_image",),
        ids[3]: ([], []),
    }
    some = world.make("some", partial, mark="e")
    shown = tables(world.compare(some, world.a).text)
    counts = {row[0]: row[3:] for row in shown["caches"]}
    assert counts["A"][:3] == ["8", "0", "1"]
    assert counts["A"][-1] == "undecodable_image 1"
    found = sum(len(found[0]) for found in partial.values() if len(found) > 1)
    assert counts["A"][3] == f"{found / 7:.1f}"
    assert counts["B"][:3] == ["10", "2", "0"]
    both = sum(len(world.exact[i][0]) for i in ids[2:])
    assert shown["agreement"][0][1:3] == [str(found), str(both)]
    nothing = world.make("nothing", {}, mark="f")
    empty = world.compare(nothing, nothing, num_images=3)
    assert tables(empty.text)["agreement"] == [
        [top, *"000", *"-----"] for top in ("all", "best 10")
    ]
    assert tables(empty.text)["caches"][0] == ["A", "nothing", "f" * 16, *"000", *"---", "-"]
    assert {tuple(row[2:]) for row in tables(empty.text)["recall"]} == {("0.0", "0.0", "+0.0")}


def test_a_dataset_without_objects_there_is_left_out(world: World) -> None:
    elsewhere = cache(world.root, "coco_val2017/exact", world.exact)
    report = world.compare(elsewhere, elsewhere)
    assert set(tables(report.text)) == {"caches", "agreement"}
    assert "for want of annotated objects there: drawn_val" in report.html
    assert set(tables(world.compare(world.a, world.b, labelled={}).text)) == {"caches", "agreement"}


def test_every_dataset_has_its_rows_and_images(world: World) -> None:
    report = world.compare(world.a, world.b, labelled={"one": world.samples, "two": world.samples})
    for title, rows in tables(report.text).items():
        if title not in ("caches", "agreement"):
            of = {name: [row[1:] for row in rows if row[0] == name] for name in ("one", "two")}
            assert of["one"] == of["two"] != []
    assert "<h2>Images of one</h2>" in report.html
    assert "<h2>Images of two</h2>" in report.html


def test_caches_that_cannot_be_compared_are_refused(world: World) -> None:
    elsewhere = cache(world.root, "coco_val2017/exact", world.exact)
    with pytest.raises(SettingError, match="of different image sources"):
        world.compare(world.a, elsewhere)
    with pytest.raises(SettingError, match=r"has 4 buckets, .* has 8: make the older one anew"):
        world.compare(world.a, world.make("fine", world.exact, buckets=8))


class Tags(HTMLParser):
    """Names of all elements, as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)


def test_the_page_is_the_same_each_time_and_hostile_text_stays_text(world: World) -> None:
    page = world.compare(world.a, world.b, num_images=2).html
    assert page == world.compare(world.a, world.b, num_images=2).html
    assert "script" not in Tags(page).found
    assert "&lt;script&gt;" in page
    assert "http" not in page
    for heading in (
        "Recall",
        "Recall by size",
        "Agreement",
        "Score calibration",
        "Images of drawn_val",
    ):
        assert f"<h2>{heading}</h2>" in page
