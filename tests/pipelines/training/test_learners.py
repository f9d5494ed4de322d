"""OPN and the stages as the training loop sees them: groups, batches, weights, losses, exports."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fo1_model.checkpoint import load_model
from fo1_model.config import RegionConfig
from fo1_model.opn.config import OPN_SIZES, AugmentationConfig
from fo1_model.opn.network import load_opn
from fo1_model.sizes import SIZES
from fo1_model.vlms.qwen import Qwen25VL
from pipelines.artifacts import Artifact
from pipelines.cluster import RuntimeConfig
from pipelines.errors import SettingError
from pipelines.loading.collators import Example, batch_of
from pipelines.schemas import RegionExample
from pipelines.shards.tar_format import TarWriter
from pipelines.train_config import TrainConfig
from pipelines.training import evaluators
from pipelines.training.driver import train
from pipelines.training.job import TrainJob
from pipelines.training.learners import FO1Learner, OPNLearner
from pipelines.training.trainees import Trainee

CONFIG = TrainConfig(steps=2, batch_size=2, learning_rate=1e-3, weight_decay=0.1)
DEBUG = FO1Learner(stage="stage1", model=SIZES["debug"]())
TINY_OPN = OPNLearner(network=OPN_SIZES["tiny"]())
PRIMARY = FO1Learner(
    stage="stage1",
    model=replace(SIZES["debug"](), region=RegionConfig(features="primary", pyramid_dim=16)),
)


def jpeg(seed: int) -> bytes:
    pixels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (96, 128, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


def example(seed: int, *, boxes: int = 2, ignore: tuple[bool, ...] | None = None) -> Example:
    corners = np.array([[10.0 * i, 5.0 * i, 10.0 * i + 30, 5.0 * i + 40] for i in range(boxes)])
    slots = "".join(f"<region{i}><regionfeat>" for i in range(boxes))
    question = "Please detect red circle in this image."
    answer = "<ground>red circle</ground><objects><region0></objects>" if boxes else "None"
    record = RegionExample(
        sample_id=f"sample-{seed}",
        dataset="drawn",
        task="detection",
        image_id=str(seed),
        width=128,
        height=96,
        boxes=corners.astype(np.float32).reshape(-1, 4),
        scores=(None,) * boxes,
        box_sources=("gt",) * boxes,
        messages=(
            {
                "role": "user",
                "content": f"<image>\n{slots}\n{question}" if boxes else f"<image>\n{question}",
            },
            {"role": "assistant", "content": answer},
        ),
        ignore=ignore,
    )
    return Example(record=record, image=jpeg(seed), seed=seed)


def few_steps(trainee: Trainee, examples: list[Example]) -> tuple[float, float]:
    """Loss per weight before and after a few plain optimizer steps on one batch."""
    torch.set_num_threads(1)
    groups = trainee.parameter_groups(CONFIG)
    optimizer = torch.optim.AdamW(groups)
    trainee.module.train()
    batch = batch_of(trainee.collator, examples)
    losses = []
    for _ in range(8):
        loss = trainee.loss(trainee.module, batch).total
        losses.append(float(loss.detach()) / trainee.collator.weigh(batch))
        optimizer.zero_grad()
        (loss / trainee.collator.weigh(batch)).backward()
        optimizer.step()
    return losses[0], losses[-1]


def test_opn_learns_and_exports(tmp_path: Path) -> None:
    trainee = TINY_OPN.build(None, seed=3)
    before, after = few_steps(trainee, [example(0), example(1)])
    assert after < before
    trainee.export(tmp_path)
    exported = load_opn(tmp_path).state_dict()
    for name, value in trainee.module.state_dict().items():
        assert torch.equal(value, exported[name]), name


def test_opn_is_evaluated_image_by_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many are looked at side by side changes nothing; ignored boxes are no misses."""
    TINY_OPN.build(None, seed=3).export(tmp_path)
    evaluator = TINY_OPN.evaluator(tmp_path, "cpu")
    examples = [example(seed, boxes=seed % 3) for seed in range(5)]
    together = evaluator.metrics(examples)
    assert {"ar@10", "r50@100", "r75@300", "oracle_ap"} <= set(together)
    monkeypatch.setattr(evaluators, "IMAGES_AT_ONCE", 2)
    assert evaluator.metrics(iter(examples)) == pytest.approx(together)
    assert evaluator.metrics([example(0, ignore=(True, True))]) == {}


def test_the_loss_of_held_out_conversations_is_that_of_one_batch(tmp_path: Path) -> None:
    trainee = DEBUG.build(None, seed=0)
    trainee.export(tmp_path)
    examples = [example(0), example(1, boxes=0), example(2)]
    trainee.module.eval()
    with torch.no_grad():
        output = trainee.module(batch_of(trainee.collator, examples))
    found = DEBUG.evaluator(tmp_path, "cpu").metrics(iter(examples))
    assert found == {"loss": pytest.approx(float(output.loss_sum / output.num_tokens), rel=1e-5)}


def test_opn_batches_leave_ignored_boxes_out_of_the_weight() -> None:
    trainee = TINY_OPN.build(None, seed=3)
    batch = batch_of(
        trainee.collator, [example(0), example(1, boxes=3, ignore=(False, True, False))]
    )
    assert trainee.collator.weigh(batch) == 4
    assert [len(boxes) for boxes in batch.ignore_boxes] == [0, 1]
    loss = trainee.loss(trainee.module, batch_of(trainee.collator, [example(0, boxes=0)]))
    assert torch.isfinite(loss.total)
    assert loss.parts


def test_opn_augmentation_follows_the_example_not_the_batch() -> None:
    trainee = TINY_OPN.build(None, seed=3)
    examples = [example(seed) for seed in range(6)]
    together = batch_of(trainee.collator, examples)
    apart = [batch_of(trainee.collator, [e]) for e in examples]
    assert torch.equal(together.pixels, torch.cat([batch.pixels for batch in apart]))
    for boxes, batch in zip(together.boxes, apart, strict=True):
        assert torch.equal(boxes, batch.boxes[0])
    unflipped = OPNLearner(network=TINY_OPN.network, augmentation=AugmentationConfig(flip=False))
    plain = batch_of(unflipped.build(None, seed=3).collator, examples)
    mirrored = [not torch.equal(a, b) for a, b in zip(plain.pixels, together.pixels, strict=True)]
    assert 0 < sum(mirrored) < 6


def test_opn_builds_the_same_network_from_the_same_seed() -> None:
    first, again, other = (TINY_OPN.build(None, seed=s).module.state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_stage_one_trains_its_parts_alone_and_weighs_tokens(tmp_path: Path) -> None:
    trainee = DEBUG.build(None, seed=0)
    frozen = {
        n: p.detach().clone()
        for n, p in trainee.module.named_parameters()
        if n.startswith(("vlm.", "aux"))
    }
    examples = [example(0), example(1, boxes=0)]
    before, after = few_steps(trainee, examples)
    assert after < before
    for name, value in trainee.module.named_parameters():
        if name in frozen:
            assert torch.equal(value, frozen[name]), name
    batch = batch_of(trainee.collator, examples)
    assert trainee.collator.weigh(batch) == float(trainee.module(batch).num_tokens)
    trainee.export(tmp_path)
    exported = load_model(tmp_path)[0].state_dict()
    for name, value in trainee.module.state_dict().items():
        assert torch.equal(value, exported[name]), name

    child = FO1Learner(stage="stage2", learning_rates={"language": 1e-4}).build(tmp_path, seed=9)
    rates = {group["name"]: group["lr"] for group in child.parameter_groups(CONFIG)}
    assert rates["language"] == 1e-4
    assert rates["region_encoder"] == 1e-3
    assert torch.equal(child.module.new_rows.weight, trainee.module.new_rows.weight)


@pytest.mark.parametrize(
    ("learner", "has_parent", "weights", "words"),
    [
        (TINY_OPN, True, [], "leave out the parent"),
        (TINY_OPN, False, ["omdet"], "given for omdet; it takes none"),
        (replace(TINY_OPN, warm_start=True), False, [], "name the folder of an OmDet-Turbo"),
        (
            replace(TINY_OPN, warm_start=True),
            False,
            ["vlm"],
            "given for vlm; it takes them for omdet",
        ),
        (DEBUG, True, [], "leave out the parent"),
        (DEBUG, False, ["omdet", "vlm"], "given for omdet; it takes them for vlm, auxiliary"),
        (DEBUG, False, ["auxiliary"], "given for auxiliary; give vlm too"),
        (PRIMARY, False, ["vlm", "auxiliary"], "given for auxiliary; it takes them for vlm"),
        (FO1Learner(stage="stage2"), False, [], "name the run it continues"),
        (FO1Learner(stage="stage2"), True, ["vlm"], "given for vlm; it takes none"),
        (FO1Learner(stage="stage1", base="tiny"), True, [], "base='tiny': needs `model`"),
        (
            FO1Learner(stage="stage1", base="huge", model=SIZES["debug"]()),
            False,
            [],
            "one of debug, tiny",
        ),
        (replace(DEBUG, base="debug"), False, ["vlm", "auxiliary"], "base='debug': leave it out"),
    ],
)
def test_contradictions_are_refused(
    learner: FO1Learner, has_parent: bool, weights: list[str], words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        learner.check(has_parent=has_parent, weights=weights)


def test_packing_is_refused_where_samples_would_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a new model and in a parent's, before anything starts."""
    parent = {"config.json": json.dumps({"model": SIZES["debug"]().to_dict()}).encode()}.__getitem__
    new, child = replace(DEBUG, packs=True), FO1Learner(stage="stage2", packs=True)
    new.check(has_parent=False)
    child.check_parent(parent)
    monkeypatch.setattr(Qwen25VL, "packs", False)
    DEBUG.check(has_parent=False)
    FO1Learner(stage="stage2").check_parent(parent)
    with pytest.raises(SettingError, match="packs=True: the decoder of 'qwen2_5_vl' would mix"):
        new.check(has_parent=False)
    with pytest.raises(SettingError, match="packs=True: the decoder of 'qwen2_5_vl' would mix"):
        child.check_parent(parent)


def test_the_base_is_an_input_by_its_content(tmp_path: Path) -> None:
    assert DEBUG.inputs() == TINY_OPN.inputs() == {}
    with pytest.raises(SettingError, match="huge_base"):
        FO1Learner(stage="stage1", base="huge").inputs()


def write_shards(root: Path) -> Artifact:
    """Finished shards of 12 detection examples, two of them without boxes."""
    artifact = Artifact(root=str(root), kind="shards", name="drawn", fingerprint="0123456789abcdef")
    writer = TarWriter()
    for seed in range(12):
        made = example(seed, boxes=0 if seed in (3, 7) else 2)
        writer.add(made.record, made.image)
    tar, index = writer.finish()
    artifact.write_bytes("detection-00000.tar", tar)
    artifact.write_bytes("detection-00000.index.parquet", index)
    artifact.commit({"files": {"detection-00000.tar": {"rows": 12}}})
    return artifact


def test_detector_and_both_stages_go_through_the_loop(tmp_path: Path) -> None:
    """OPN, then stage 1 from new weights, then stage 2 from stage 1: each trains and exports."""
    shards = write_shards(tmp_path)
    runtime = RuntimeConfig(root=str(tmp_path), data=str(tmp_path), workers=0)
    config = TrainConfig(
        steps=2, batch_size=4, micro_batch_size=2, learning_rate=1e-3, weight_decay=0.1
    )
    parent: Artifact | None = None
    exports = []
    for name, learner in (
        ("opn", TINY_OPN),
        ("stage1", DEBUG),
        ("stage2", FO1Learner(stage="stage2")),
    ):
        job = TrainJob(
            name=name,
            learner=learner,
            config=config,
            mix={"drawn/detection": 1.0},
            shards={"drawn": shards},
            parent=parent,
        )
        output = job.artifact(str(tmp_path))
        assert np.isfinite(train(job, output, runtime)["metrics"]["loss"])
        exports.append(Path(output.path, "export"))
        parent = output if name == "stage1" else None
    assert load_opn(exports[0]).config == TINY_OPN.network
    first, second = (load_model(folder)[0].state_dict() for folder in exports[1:])
    moved = {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])}
    assert moved == {"vlm", "auxiliary", "region_encoder", "new_rows"}
    assert all(torch.equal(first[n], second[n]) for n in first if n.startswith("vlm.model.visual."))
