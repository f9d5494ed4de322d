import re

import pytest

from dataset_builders.records import Reject
from pipelines.evaluation.stored_inputs import load_samples
from pipelines.reports.shard_report import inspect_page
from tests.pipelines.evaluation.small_evaluation import (
    proposals_artifact,
    samples_artifact,
    shards_artifact,
    small_world,
)

REJECTS = tuple(Reject(f"annotations/{i}", "empty_box", f"<i>{i}</i>", "box") for i in range(5))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    world = small_world(tmp_path_factory.mktemp("world"), scenes=8)
    samples = samples_artifact(tmp_path_factory.mktemp("root"), world, "drawn_val", REJECTS)
    broken = min(sample.image_id for sample in load_samples(samples))
    proposals = proposals_artifact(world, samples, broken=broken)
    return (
        samples,
        proposals,
        shards_artifact(samples, proposals, world, regions="proposals"),
        broken,
    )


@pytest.fixture(scope="module")
def page(parts):
    samples, proposals, shards, _ = parts
    return inspect_page(shards, samples=samples, proposals=[proposals], images_per_task=2)


def cells(page):
    rows = re.findall(r"<tr>\s*(.*?)\s*</tr>", page, re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]


def test_every_step_adds_up(parts, page):
    ledgers = [row for row in cells(page) if row and row[-1] in ("yes", "NO")]
    assert [row[0] for row in ledgers] == ["samples", "proposals", "shards", "shards"]
    assert {row[-1] for row in ledgers} == {"yes"}
    assert ledgers[0][2:5] == [
        str(parts[0].manifest()["ledger"]["samples"][k]) for k in ("rows_in", "rows_out", "rejects")
    ]
    assert ledgers[1][4] == "1"


def test_rejects_are_listed_by_reason_with_a_few_examples(parts, page):
    rows = {tuple(row[:2]): row[2:] for row in cells(page) if len(row) == 4}
    count, shown = rows["samples", "empty_box"]
    assert count == "5"
    assert shown.splitlines() == [f"annotations/{i}: &lt;i&gt;{i}&lt;/i&gt;" for i in range(3)]
    count, shown = rows["proposals", "undecodable_image"]
    assert (count, shown) == ("1", f"{parts[3]}: cut &lt;b&gt;short&lt;/b&gt;")
    assert ("shards", "undecodable_image") in rows


def test_contents_are_counted_by_dataset_and_task(parts, page):
    rows = {row[1]: row for row in cells(page) if row and row[0] == "drawn_val"}
    files = parts[2].manifest()["files"]
    for task in ("detection", "counting", "region_name", "rejection"):
        total = sum(
            entry["rows"]
            for name, entry in files.items()
            if re.fullmatch(rf"{task}-\d+\.tar", name)
        )
        assert rows[task][2] == str(total)


def test_images_recall_and_fingerprints_are_shown(parts, page):
    assert page.count("<article") == 2 * 5
    assert page.count("data:image/jpeg") == 2 * 5
    assert "Recall of the proposals" in page
    for artifact in parts[:3]:
        assert artifact.fingerprint in page


def test_shards_alone_are_enough(parts):
    page = inspect_page(parts[2], images_per_task=1)
    assert page.count("<article") == 5
    assert "Recall of the proposals" not in page


def test_an_evaluation_shard_shows_the_truth_it_leaves_out(parts, tmp_path):
    samples, proposals, _, _ = parts
    world = tmp_path
    shards = shards_artifact(
        samples, proposals, small_world(world, scenes=8), regions="proposals_scored"
    )
    page = inspect_page(shards, images_per_task=1)
    assert page.count("<dt>truth</dt>") == 5
    assert "<dt>answer</dt>" not in page


def test_the_page_is_the_same_every_time(parts, page):
    samples, proposals, shards, _ = parts
    assert inspect_page(shards, samples=samples, proposals=[proposals], images_per_task=2) == page
