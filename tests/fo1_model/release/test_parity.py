"""The released code's own numbers, where they are at hand; and that the comparison can fail."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from fo1_model import grammar
from fo1_model.checkpoint import new_model
from fo1_model.config import ModelConfig
from fo1_model.release import export_release, parity
from fo1_model.release.parity import compare, compare_case, main
from fo1_model.sizes import debug
from tests import SHARED
from tests.fo1_model.conftest import picture, some_boxes

CASES = SHARED / "parity"
COUNT = 5
NEW_TOKENS = 3


@pytest.mark.parametrize("name", ["base", "region_norm"])
def test_the_release(name):
    folder = CASES / name
    if not folder.is_dir():
        pytest.skip(f"no golden case in {folder}")
    lines, notes = compare_case(folder)
    assert [str(line) for line in lines if not line.passed] == []
    assert {line.name for line in lines} >= set(load_file(folder / "outputs.safetensors")) - {
        "logits_columns"
    }
    assert {"input_ids", "pixel_values", "pixel_values_aux", "boxes_aux"} <= {
        line.name for line in lines
    }
    assert notes == []


DEFAULT = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
WRITTEN_OUT = {
    "explicit": "<|im_start|>system\nAnswer in French.<|im_end|>\n",
    "string": "<|im_start|>system\nAnswer in French.<|im_end|>\n"
    "<|im_start|>user\nLook closely.<|im_end|>\n",
    "none": "",
}
"""Turns before the one with the image that somebody wrote out."""


def write_case(
    folder: Path, question: str, *, turns: str | None = None, config: ModelConfig | None = None
) -> None:
    """A case of a debug-size model; outputs that plain transformers gives are computed with it.

    As the release does it, the ids of turns that are written out lack the newline after their end.
    """
    model, processor = new_model(config or debug(), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    export_release(model, processor, folder)
    (folder / "tokens.json").write_text(json.dumps(processor.tokenizer.get_added_vocab()))
    image, boxes = picture(90, 61), some_boxes(COUNT, 90, 61)
    image.save(folder / "image.png")
    regions = grammar.region_prompt(COUNT)
    head = DEFAULT if turns is None else WRITTEN_OUT[turns]
    prompt = (
        f"{head}<|im_start|>user\n<|vision_start|><image><|vision_end|>\n{regions}\n"
        f"{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    (folder / "prompt.txt").write_text(prompt)
    marked = prompt.replace("<image>", "<|image_pad|>").replace("<regionfeat>", "<|vision_pad|>")
    if turns is not None:
        marked = head.replace("<|im_end|>\n", "<|im_end|>") + marked.removeprefix(head)
    real = torch.tensor(processor.tokenizer.encode(marked))
    ids = torch.where(real == processor.token_ids.image, -200, real)
    ids = torch.where(real == processor.token_ids.region, -300, ids)[None]
    labels = torch.full_like(ids, -100)
    labels[:, -4:] = ids[:, -4:]
    pixels, grid = processor.family.preprocess(image)
    inputs = {
        "input_ids": ids,
        "labels": labels,
        "boxes": torch.from_numpy(boxes),
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, *grid]]),
    }
    save_file(inputs, folder / "inputs.safetensors")

    config = Qwen2_5_VLConfig(
        **model.model_config.vlm.config, image_token_id=processor.token_ids.image
    )
    plain = Qwen2_5_VLForConditionalGeneration(config).eval()
    plain.load_state_dict(model.vlm.state_dict())
    where = int((real == processor.token_ids.image).nonzero())
    image_ids = torch.full((grid[0] * grid[1] // 4,), processor.token_ids.image)
    expanded = torch.cat([real[:where], image_ids, real[where + 1 :]])[None]
    types = (expanded == processor.token_ids.image).long()
    with torch.no_grad():
        tokens = plain.model.visual(pixels, grid_thw=inputs["image_grid_thw"]).pooler_output
        positions, deltas = plain.model.get_rope_index(
            expanded, mm_token_type_ids=types, image_grid_thw=inputs["image_grid_thw"]
        )
    outputs = {
        "image_tokens": tokens,
        "position_ids": positions.contiguous(),
        "rope_deltas": deltas,
        "logits_columns": torch.arange(8),
        "generated": torch.cat([ids, torch.zeros(1, NEW_TOKENS, dtype=torch.int64)], dim=1),
    }
    save_file(outputs, folder / "outputs.safetensors")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("case")
    write_case(folder, "Please detect red circle in this image.")
    return folder


def verdicts(folder):
    return {line.name: line.passed for line in compare_case(folder)[0]}


def test_a_case_made_with_plain_transformers(case):
    found = verdicts(case)
    assert found.pop("generated") is False  # the made-up tokens
    assert found == dict.fromkeys(
        [
            "input_ids",
            "pixel_values",
            "image_grid_thw",
            "image_tokens",
            "position_ids",
            "rope_deltas",
        ],
        True,
    )


@pytest.mark.parametrize("name", ["image_tokens", "position_ids", "pixel_values", "input_ids"])
def test_a_changed_reference_fails(name, case, tmp_path, capsys):
    shutil.copytree(case, tmp_path, dirs_exist_ok=True)
    file = tmp_path / ("outputs" if name in ("image_tokens", "position_ids") else "inputs")
    values = load_file(f"{file}.safetensors")
    if name == "input_ids":
        values[name][0, 3] += 1
    elif values[name].is_floating_point():
        values[name].view(-1)[0] += 2e-4 * values[name].abs().max()
    else:
        values[name].view(-1)[0] += 1
    save_file(values, f"{file}.safetensors")
    assert main([str(tmp_path)]) == 1
    failed = [
        line.split() for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")
    ]
    assert name in [words[0] for words in failed]


def test_greedy_tokens_are_the_arguments_of_the_largest_logits(case, tmp_path):
    """With our own tokens as the reference the line passes; the second-best token makes it fail."""
    shutil.copytree(case, tmp_path, dirs_exist_ok=True)
    model, processor = parity.load_release(case, dtype=torch.float32)
    inputs = load_file(case / "inputs.safetensors")
    messages = [{"role": "user", "content": f"<image>\n{grammar.region_prompt(COUNT)}\n"}]
    messages[0]["content"] += "Please detect red circle in this image."
    encoded = processor.encode(
        picture(90, 61), inputs["boxes"].numpy(), messages, for_generation=True
    )
    with torch.inference_mode():
        batch = processor.collate([encoded])
        embeddings, chosen = model.embed(batch), []
        for step in range(NEW_TOKENS):  # the whole sequence anew for every token, without a cache
            more = batch.positions.max() + 1 + torch.arange(step)
            positions = torch.cat([batch.positions, more.expand(3, 1, -1)], dim=2)
            hidden = model.decode(embeddings, torch.ones(1, embeddings.shape[1]), positions)
            chosen.append(model.logits(hidden[:, -1]).argmax(dim=-1))
            embeddings = torch.cat([embeddings, model.embed_ids(chosen[-1][None])], dim=1)
    outputs = load_file(case / "outputs.safetensors")
    outputs["generated"] = torch.cat([inputs["input_ids"], torch.stack(chosen, dim=1)], dim=1)
    save_file(outputs, tmp_path / "outputs.safetensors")
    assert verdicts(tmp_path)["generated"]


@pytest.mark.parametrize(
    ("own", "reference", "figure", "passed"),
    [
        ([1.0, 2.0], [1.0, 2.0], "0.0e+00", True),
        ([1.0, 2.0001], [1.0, 2.0], "5.0e-05", True),
        ([1.0003, 2.0], [1.0, 2.0], "1.5e-04", False),
        ([-1.0, 0.0], [-1.0, 0.001], "1.0e-03", False),
        ([1.0, float("nan")], [1.0, 2.0], "nan", False),
        ([0.0, 0.0], [0.0, 0.0], "0.0e+00", True),
        ([0.0, 0.5], [0.0, 0.0], "5.0e-01", False),
        ([1.0], [1.0, 2.0], "[1] for [2]", False),
        ([1, 2], [1, 2], "exact", True),
        ([1, 3], [1, 2], "1 differ", False),
    ],
)
def test_one_line(own, reference, figure, passed):
    line = compare("x", torch.tensor(own), torch.tensor(reference))
    assert (line.figure, line.passed) == (figure, passed)
    assert str(line).split()[0] == "x"


def test_what_is_not_computed_fails():
    assert not compare("x", None, torch.zeros(1)).passed


def test_folders_that_are_no_case(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "is no parity case: it lacks config.json" in error
    assert len(error.splitlines()) == 1
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
