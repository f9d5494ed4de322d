"""Comparison with the released code: ``python -m fo1_model.release.parity CASE_FOLDER ...``.

A case is a released checkpoint in the small with what the released code made of one image and
question: a folder of ``model*.safetensors``, ``config.json``, ``tokens.json``, ``image.png``,
``prompt.txt``, ``inputs.safetensors`` and ``outputs.safetensors``. The model goes through
``load_release`` in float32, image and prompt through our own processor, and every tensor is taken
where the model itself computes it.

It prints one line a tensor: name, max |difference| / max |reference| or ``exact``, and a verdict:
``pass``, ``differs as intended: RULE`` where one rule of `intended` explains all of the difference,
or ``FAIL``. Numbers pass at 1e-4 (the loss too), ids, positions and greedy tokens only when they
are equal. What the rules say follows. The exit status is 0 when nothing fails, 1 when something
does, 2 for a folder that is no case.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from fo1_model import boxes as box_ops
from fo1_model import grammar
from fo1_model.batch import IGNORE, Encoded
from fo1_model.errors import SettingError
from fo1_model.generation import GenerationConfig, generate
from fo1_model.images import MIN_SIDE
from fo1_model.model import FO1Model
from fo1_model.processing import Processor
from fo1_model.release import load_release
from fo1_model.release.intended import Case, Difference, inverted, plain_positions, rule_for
from fo1_model.weights import read_json

TOLERANCE = 1e-4
"""Largest difference that passes, relative to the largest reference value."""
_IMAGE_ID, _REGION_ID = -200, -300
"""Placeholders of the release in a case's ids."""
_FILES = (
    "config.json",
    "tokens.json",
    "image.png",
    "prompt.txt",
    "inputs.safetensors",
    "outputs.safetensors",
)
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", re.DOTALL)
_LOGITS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Line:
    """One compared tensor."""

    name: str
    """Name of the tensor, as in the case's files."""
    figure: str
    """The difference, as it is printed."""
    passed: bool
    """Whether the difference is small enough."""
    rule: str | None = None
    """Name of the rule of `intended` that explains a difference which is not."""

    @property
    def failed(self) -> bool:
        """Whether there is a difference that nothing explains."""
        return not self.passed and self.rule is None

    def __str__(self) -> str:
        explained = "FAIL" if self.rule is None else f"differs as intended: {self.rule}"
        return f"{self.name:<18} {self.figure:<22} {'pass' if self.passed else explained}"


def main(arguments: Sequence[str]) -> int:
    """Compare each folder; return the exit status."""
    if not arguments:
        print("usage: python -m fo1_model.release.parity CASE_FOLDER ...", file=sys.stderr)
        return 2
    status = 0
    for argument in arguments:
        try:
            lines, notes = compare_case(Path(argument))
        except SettingError as error:
            print(f"fo1_model.release.parity: {error}", file=sys.stderr)
            return 2
        passed = sum(line.passed for line in lines)
        failed = sum(line.failed for line in lines)
        as_intended = len(lines) - passed - failed
        print(argument)
        print("\n".join([*map(str, lines), *(f"note: {note}" for note in notes)]))
        intended = f", {as_intended} as intended" if as_intended else ""
        print(f"{passed} of {len(lines)} pass{intended}")
        status = max(status, int(failed > 0))
    return status


@torch.inference_mode()
def compare_case(folder: Path) -> tuple[list[Line], list[str]]:
    """Return every tensor of a case against ours, and notes on what the case does otherwise.

    Raises:
        SettingError: For a folder that is no case, or whose checkpoint ``load_release`` refuses.
    """
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise SettingError(f"{folder} is no parity case: it lacks {', '.join(missing)}")
    inputs = load_file(folder / "inputs.safetensors")
    expected = load_file(folder / "outputs.safetensors")
    model, processor = load_release(folder, dtype=torch.float32)
    image, notes = _image(folder)
    prompt = (folder / "prompt.txt").read_text(encoding="utf-8")
    flat = read_json(folder / "config.json")
    own = _encode(processor, image, inputs["boxes"], prompt, folder.name)
    encoded, given = _from_ids(own, inputs, processor)
    positions = encoded.positions[:, None]
    if plain_positions(flat, expected["position_ids"]):
        # The rule on left padding: all else must follow from the case's positions.
        encoded = replace(encoded, positions=expected["position_ids"][:, 0])
    computed: dict[str, Tensor | None] = {
        **_inputs(own),
        **_outputs(model, processor, encoded, inputs["input_ids"], expected),
        "position_ids": positions,
        "rope_deltas": (positions.max() + 1 - positions.shape[-1]).view(1, 1),
    }
    if inverted(inputs["boxes"]).any():
        computed["boxes"] = None
    references = {name: inputs[name] for name in computed if name in inputs}
    references |= {"input_ids": given} | expected
    del references["logits_columns"]
    height, width = own.auxiliary[0].shape[1:]
    case = Case(prompt=prompt, flat=flat, processor=processor, auxiliary_size=(width, height))
    lines, rules = [], []
    for name, reference in references.items():
        line = compare(name, computed.get(name), reference)
        rule = None
        if not line.passed:
            rule = rule_for(
                Difference(name=name, own=computed.get(name), reference=reference, case=case)
            )
        lines.append(line if rule is None else replace(line, rule=rule.name))
        rules += [rule] if rule is not None and rule not in rules else []
    return lines, [*notes, *(f"{rule.name}: {rule.sentence}" for rule in rules)]


def _image(folder: Path) -> tuple[Image.Image, list[str]]:
    """Return a case's image, RGB, as the release sees it, and notes on what was done to it."""
    with Image.open(folder / "image.png") as opened:
        image = opened.convert("RGB")
    if min(image.size) >= MIN_SIDE:
        return image, []
    # The release stretches such an image and leaves its boxes where they were.
    size = (max(image.width, MIN_SIDE), max(image.height, MIN_SIDE))
    note = (
        f"the image is stretched to {MIN_SIDE} px; the release does not move the boxes along, "
        "ours would"
    )
    return image.resize(size, Image.Resampling.BICUBIC), [note]


def _encode(
    processor: Processor, image: Image.Image, boxes: Tensor, prompt: str, sample_id: str
) -> Encoded:
    """Return the case through our processor; inverted boxes, which it refuses, are put in after."""
    upright = torch.cat(
        [torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])],
        dim=1,
    )
    own = processor.encode(
        image, upright.numpy(), _messages(prompt), for_generation=True, sample_id=sample_id
    )
    if not inverted(boxes).any():
        return own
    return replace(own, boxes=(box_ops.clip(boxes, *image.size),))


def compare(name: str, own: Tensor | None, reference: Tensor) -> Line:
    """Return one line: numbers by their largest relative difference, integers exactly.

    Args:
        name: Name of the tensor.
        own: Ours; None where nothing was computed.
        reference: The release's; a difference is relative to its largest value.
    """
    if own is None:
        return Line(name=name, figure="not computed", passed=False)
    if own.shape != reference.shape:
        return Line(
            name=name, figure=f"{list(own.shape)} for {list(reference.shape)}", passed=False
        )
    if not reference.is_floating_point():
        different = int((own != reference).sum())
        return Line(
            name=name, figure=f"{different} differ" if different else "exact", passed=not different
        )
    largest = float(reference.abs().max()) if reference.numel() else 0.0
    difference = (
        float((own.double() - reference.double()).abs().max()) if reference.numel() else 0.0
    )
    relative = difference / largest if largest else difference
    # A difference that is not a number is above every tolerance.
    return Line(name=name, figure=f"{relative:.1e}", passed=relative <= TOLERANCE)


def _messages(prompt: str) -> list[dict[str, str]]:
    """Return the prompt's turns; the processor writes the tokens around an image itself."""
    bare = prompt.replace(f"<|vision_start|>{grammar.IMAGE}<|vision_end|>", grammar.IMAGE)
    return [{"role": role, "content": content} for role, content in _TURN.findall(bare)]


def _from_ids(
    own: Encoded, inputs: Mapping[str, Tensor], processor: Processor
) -> tuple[Encoded, Tensor]:
    """Return the sample with the case's own ids and labels, expanded; and those ids."""
    grid = own.grids[0]
    count = processor.family.num_image_tokens(grid)
    ids: list[int] = []
    labels: list[int] = []
    starts: list[int] = []
    for token, label in zip(
        inputs["input_ids"][0].tolist(), inputs["labels"][0].tolist(), strict=True
    ):
        if token == _IMAGE_ID:
            starts.append(len(ids))
            ids += [processor.token_ids.image] * count
            labels += [IGNORE] * count
        else:
            ids.append(processor.token_ids.region if token == _REGION_ID else token)
            labels.append(IGNORE if token == _REGION_ID else label)
    positions = processor.family.positions(len(ids), [(start, grid) for start in starts])
    given = torch.tensor(ids)
    return replace(own, input_ids=given, labels=torch.tensor(labels), positions=positions), given


def _inputs(own: Encoded) -> dict[str, Tensor]:
    """Return what our processor makes of image, boxes and prompt, under the case's names."""
    (width, height), auxiliary = own.sizes[0], own.auxiliary[0]
    scale = (auxiliary.shape[2] / width, auxiliary.shape[1] / height)
    return {
        "input_ids": own.input_ids,
        "pixel_values": own.pixels[0],
        "pixel_values_aux": auxiliary,
        "image_grid_thw": torch.tensor([[1, *own.grids[0]]]),
        "boxes_aux": box_ops.scale(own.boxes[0].double(), *scale).float(),
    }


def _outputs(
    model: FO1Model,
    processor: Processor,
    encoded: Encoded,
    ids: Tensor,
    expected: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return what the model computes, under the case's names.

    Args:
        model: Ours, with the case's weights.
        processor: Its processor.
        encoded: The sample.
        ids: int64[1, L] with the case's placeholders.
        expected: The case's outputs.
    """
    batch = processor.collate([encoded])
    new_tokens = expected["generated"].shape[1] - ids.shape[1]
    with _captured(model) as seen:
        embeddings = model.embed(batch)
    hidden = model.decode(embeddings, batch.attention_mask, batch.positions)
    columns = expected["logits_columns"]
    pieces = hidden[0].split(_LOGITS_AT_ONCE)
    loss = model(batch)
    computed = {
        "image_tokens": seen["image_tokens"],
        "region_hybrid": seen["region_hybrid"],
        "region_tokens": seen["region_tokens"],
        "inputs_embeds": embeddings,
        "final_hidden": hidden,
        "logits_last": model.logits(hidden[:, -1]),
        "logits_some": torch.cat([model.logits(piece)[:, columns] for piece in pieces])[None],
        "loss": (loss.loss_sum / loss.num_tokens).view(1),
        "generated": torch.cat([ids, _greedy(model, processor, encoded, new_tokens)], dim=1),
    }
    _, maps = model.family.encode_images(model.vlm, batch.pixels, batch.grids, all_levels=True)
    if model.auxiliary is not None and "davit" not in seen:
        seen["davit"] = model.auxiliary(batch.auxiliary, batch.sizes)[0]
    for name, levels in (
        ("vit_level", maps[0].split(model.family.primary_dim)),
        ("davit", [level.values for level in seen.get("davit", ())]),
        ("pyramid", [level.values for level in seen.get("pyramid", ())]),
    ):
        computed |= {f"{name}.{index}": values[None] for index, values in enumerate(levels)}
    return computed


def _greedy(model: FO1Model, processor: Processor, encoded: Encoded, count: int) -> Tensor:
    """Return the first ``count`` tokens of the greedy answer, int64[1, count or fewer]."""
    chosen = torch.zeros((1, 0), dtype=torch.int64)

    def look(tokens: Tensor, logits: Tensor) -> Tensor:
        nonlocal chosen
        chosen = torch.cat([tokens, logits.argmax(dim=-1, keepdim=True)], dim=1)
        return logits

    if count:
        generate(
            model, processor, [encoded], GenerationConfig(max_new_tokens=count), logits_hook=look
        )
    return chosen


@contextmanager
def _captured(model: FO1Model) -> Iterator[dict[str, Any]]:
    """Yield what modules give while the model runs once: image tokens, maps, regions."""
    seen: dict[str, Any] = {}
    encoder = model.region_encoder

    def keep(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            seen[name] = output[0] if name == "davit" else output
            if name == "region_tokens":
                seen["region_hybrid"] = given[0]

        return hook

    modules: dict[str, nn.Module | None] = {
        "image_tokens": model.image_projector,
        "davit": model.auxiliary,
        "pyramid": encoder.pyramid,
        "region_tokens": encoder.connector,
    }
    handles = [
        module.register_forward_hook(keep(name))
        for name, module in modules.items()
        if module is not None
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
