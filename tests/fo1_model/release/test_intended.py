"""Made cases of what the release does otherwise: explained, and nothing else with it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.ops import roi_align

from fo1_model.grammar import region_prompt
from fo1_model.release import load_release
from fo1_model.release.intended import RULES, Case, Difference, rule_for
from fo1_model.release.parity import compare_case, main
from fo1_model.sizes import debug
from tests import SHARED
from tests.fo1_model.conftest import picture
from tests.fo1_model.release.test_parity import write_case

BASE = SHARED / "parity" / "base"


def change(folder, name, **tensors):
    """Put tensors into a safetensors file of a case."""
    path = folder / f"{name}.safetensors"
    save_file({**load_file(path), **tensors}, path)


def change_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def lines_of(folder):
    lines, notes = compare_case(folder)
    return {line.name: line for line in lines}, notes


def faults(lines):
    return [str(line) for line in lines.values() if line.failed]


def use_own_answer(folder):
    """Put our own greedy tokens into a made case, so that nothing of it fails but what is meant."""
    inputs = load_file(folder / "inputs.safetensors")
    change(folder, "outputs", generated=inputs["input_ids"])


@pytest.mark.parametrize(
    ("question", "turns", "rule"),
    [
        ("Which system is it?", "none", "default system turn"),
        ("Please detect red circle.", "explicit", "newline after a turn of text"),
        ("Please detect red circle.", "string", "newline after a turn of text"),
    ],
)
def test_turns_that_the_release_writes_otherwise(question, turns, rule, tmp_path, capsys):
    """Ids differ as intended, and what follows from the case's own ids is equal."""
    write_case(tmp_path, question, turns=turns)
    use_own_answer(tmp_path)
    lines, notes = lines_of(tmp_path)
    ids = lines.pop("input_ids")
    assert (ids.passed, ids.rule, ids.failed) == (False, rule, False)
    assert all(line.passed and line.rule is None for line in lines.values())
    assert [note.split(":")[0] for note in notes] == [rule]

    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said if line.endswith(f"as intended: {rule}")] == [
        "input_ids"
    ]
    assert any(line.startswith(f"note: {rule}: the release leaves") for line in said)
    assert said[-1] == f"{len(lines)} of {len(lines) + 1} pass, 1 as intended"


def test_a_default_turn_that_is_missing_without_the_word_is_a_fault(tmp_path):
    write_case(tmp_path, "Which one is it?", turns="none")
    assert lines_of(tmp_path)[0]["input_ids"].failed
    assert main([str(tmp_path)]) == 1


def id_differences(case, turns, spoil):
    """The difference of ids between a made prompt and what the release would have, spoiled."""
    tokenizer = case.processor.tokenizer
    own = turns + "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>\nA cup<|im_end|>\n"
    encode = lambda text: torch.tensor(tokenizer.encode(text))  # noqa: E731
    return Difference(
        name="input_ids",
        own=encode(own + "<|im_start|>assistant\n"),
        reference=encode(spoil(own) + "<|im_start|>assistant\n"),
        case=replace(case, prompt=own),
    )


SYSTEM = "<|im_start|>system\nBe brief.<|im_end|>\n"


@pytest.mark.parametrize(
    ("turns", "spoil", "explained"),
    [
        (SYSTEM, lambda text: text.replace("brief.<|im_end|>\n", "brief.<|im_end|>"), True),
        # the newline after the turn with the image is there in the release too
        (SYSTEM, lambda text: text.replace("<|im_end|>\n", "<|im_end|>"), False),
        ("", lambda text: text.replace("cup<|im_end|>\n", "cup<|im_end|>"), False),
        (SYSTEM, lambda text: text.replace("system\n", "system"), False),
        (SYSTEM, lambda text: text.replace("brief.<|im_end|>\n", "grief<|im_end|>"), False),
        (SYSTEM, lambda text: text.replace("<|im_end|>\n", "<|im_end|>\n\n", 1), False),
        (SYSTEM, lambda text: text[: -len("<|im_end|>\n")], False),
    ],
)
def test_only_the_newline_after_a_turn_of_text_is_explained(turns, spoil, explained, case):
    difference = id_differences(case, turns, spoil)
    assert not torch.equal(difference.own[: len(difference.reference)], difference.reference)
    rule = rule_for(difference)
    assert (rule is not None) == explained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("case")
    write_case(path, "Please detect red circle in this image.")
    use_own_answer(path)
    return path


@pytest.fixture(scope="module")
def case(folder):
    _, processor = load_release(folder)
    return Case(prompt="", flat={}, processor=processor, auxiliary_size=(90, 61))


def test_a_clean_case_needs_no_rule(folder):
    lines, notes = lines_of(folder)
    assert all(line.passed for line in lines.values())
    assert notes == []


def sine(values, width):
    """Spec of the box embedding, entry by entry."""
    index = torch.arange(width, dtype=torch.float64)
    angles = 2 * torch.pi * values[:, None] / 10000 ** (2 * (index // 2) / width)
    return torch.where(index % 2 == 0, angles.sin(), angles.cos())


def pooled(boxes, auxiliary_size, maps, pyramid, grid):
    """What the release's encoder makes of boxes in the auxiliary frame, with torchvision alone."""
    finest = maps[0].shape[-2:]
    whole = torch.cat(
        [
            torch.nn.functional.interpolate(
                level, size=finest, mode="bilinear", align_corners=False
            )
            for level in maps
        ],
        dim=1,
    )
    parts = [roi_align(whole, [boxes], 7, 0.25, -1, False).mean(dim=(2, 3))]
    sides = torch.tensor([grid[1] * 14, grid[0] * 14]).repeat(2)
    primary = boxes * sides / torch.tensor(auxiliary_size).repeat(2)
    for level, stride in zip(pyramid, (3.5, 7, 14, 28), strict=True):
        parts.append(roi_align(level, [primary], 7, 1 / stride, -1, False).mean(dim=(2, 3)))
    feature = torch.cat(parts, dim=1)
    x0, y0, x1, y1 = (primary / sides).double().unbind(dim=1)
    values = (y0 + (y1 - y0) / 2, x0 + (x1 - x0) / 2, x1 - x0, y1 - y0)
    width = feature.shape[1] // 4
    return feature + torch.cat([sine(value, width) for value in values], dim=1).float()


@pytest.fixture
def inverted_case(tmp_path):
    """The recorded case with two boxes turned round, and what torchvision pools from its maps."""
    if not BASE.is_dir():
        pytest.skip(f"no golden case in {BASE}")
    shutil.copytree(BASE, tmp_path, dirs_exist_ok=True)
    inputs, outputs = (load_file(BASE / f"{name}.safetensors") for name in ("inputs", "outputs"))

    def make(rows):
        boxes, in_auxiliary = inputs["boxes"].clone(), inputs["boxes_aux"].clone()
        for row, order in rows.items():
            boxes[row], in_auxiliary[row] = boxes[row][order], in_auxiliary[row][order]
        hybrid = pooled(
            in_auxiliary,
            (181, 133),
            [outputs[f"davit.{level}"] for level in range(4)],
            [outputs[f"pyramid.{level}"] for level in range(4)],
            inputs["image_grid_thw"][0, 1:].tolist(),
        )
        change(tmp_path, "inputs", boxes=boxes, boxes_aux=in_auxiliary)
        kept = {
            name: value
            for name, value in outputs.items()
            if name.split(".")[0]
            in {"davit", "pyramid", "vit_level", "image_tokens", "position_ids", "rope_deltas"}
        }
        kept |= {"logits_columns": outputs["logits_columns"], "region_hybrid": hybrid}
        save_file({**kept, "generated": inputs["input_ids"]}, tmp_path / "outputs.safetensors")
        return tmp_path

    return make


def test_the_reference_of_torchvision_is_the_recorded_one(inverted_case):
    lines, notes = lines_of(inverted_case({}))
    assert all(line.passed for line in lines.values())
    assert "boxes" not in lines
    assert notes == []
    recorded = load_file(BASE / "outputs.safetensors")["region_hybrid"]
    made = load_file(inverted_case({}) / "outputs.safetensors")["region_hybrid"]
    torch.testing.assert_close(made, recorded, rtol=1e-4, atol=1e-4)


def test_inverted_boxes_are_refused_and_all_else_is_compared(inverted_case, capsys):
    folder = inverted_case({1: [2, 1, 0, 3], 4: [2, 3, 0, 1]})
    lines, notes = lines_of(folder)
    assert lines.pop("boxes").rule == "inverted boxes"
    assert all(line.passed for line in lines.values()), faults(lines)
    assert "region_hybrid" in lines
    assert [note.split(":")[0] for note in notes] == ["inverted boxes"]
    assert main([str(folder)]) == 0
    assert "boxes" in capsys.readouterr().out


def test_a_fault_beside_inverted_boxes_is_a_fault(inverted_case):
    folder = inverted_case({1: [2, 1, 0, 3]})
    hybrid = load_file(folder / "outputs.safetensors")["region_hybrid"]
    hybrid[1] = hybrid[0]
    change(folder, "outputs", region_hybrid=hybrid)
    assert faults(lines_of(folder)[0]) != []
    assert main([str(folder)]) == 1


@pytest.mark.parametrize("amiss", [0.0, 0.01])
def test_boxes_that_the_release_overwrote(amiss, tmp_path):
    region = replace(debug().region, box_frame="auxiliary")
    auxiliary = replace(debug().auxiliary, resize="dynamic")
    config = replace(debug(), region=region, auxiliary=auxiliary)
    write_case(tmp_path, "A cup", config=config)
    use_own_answer(tmp_path)
    boxes = load_file(tmp_path / "inputs.safetensors")["boxes"]
    # The image is 90x61: its finest map is 23x16 cells of 4 px.
    (x0, y0, x1, y1), (width, height) = boxes.unbind(dim=1), (92, 64)
    normalised = torch.stack(
        [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height], 1
    )
    change(tmp_path, "inputs", boxes_aux=normalised + amiss)
    (line,) = [line for line in lines_of(tmp_path)[0].values() if not line.passed]
    assert line.name == "boxes_aux"
    assert line.rule == (None if amiss else "boxes overwritten")


def test_the_positions_of_left_padding(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    length = load_file(folder / "outputs.safetensors")["position_ids"].shape[-1]
    plain = torch.arange(length).repeat(3, 1, 1)
    deltas = torch.zeros(1, 1, dtype=torch.int64)
    change(tmp_path, "outputs", position_ids=plain, rope_deltas=deltas)
    assert len(faults(lines_of(tmp_path)[0])) == 2  # padding is right: nothing explains it
    change_config(tmp_path, tokenizer_padding_side="left")
    lines, notes = lines_of(tmp_path)
    explained = {name for name, line in lines.items() if line.rule == "left padding"}
    assert explained == {"position_ids", "rope_deltas"}
    assert faults(lines) == []
    assert [note.split(":")[0] for note in notes] == ["left padding"]
    change(tmp_path, "outputs", position_ids=plain + 1)
    assert len(faults(lines_of(tmp_path)[0])) == 1


def test_what_follows_is_compared_from_the_positions_of_left_padding(folder, tmp_path):
    """The same hidden states pass where those positions are taken, and fail where they are not."""
    model, processor = load_release(folder, dtype=torch.float32)
    boxes = load_file(folder / "inputs.safetensors")["boxes"].numpy()
    content = f"<image>\n{region_prompt(len(boxes))}\nPlease detect red circle in this image."
    encoded = processor.encode(
        picture(90, 61), boxes, [{"role": "user", "content": content}], for_generation=True
    )
    batch = processor.collate([encoded])
    plain = torch.arange(batch.input_ids.shape[1]).repeat(3, 1, 1)
    with torch.inference_mode():
        hidden = model.decode(model.embed(batch), batch.attention_mask, plain)
    for side, faulty in (("left", False), ("right", True)):
        shutil.copytree(folder, tmp_path / side)
        change_config(tmp_path / side, tokenizer_padding_side=side)
        change(tmp_path / side, "outputs", position_ids=plain, final_hidden=hidden.clone())
        assert lines_of(tmp_path / side)[0]["final_hidden"].failed == faulty


def test_rules_are_named_apart():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.sentence and ":" not in rule.name for rule in RULES)
