"""Where ours differs from the released code on purpose: one rule each, for `parity`.

A rule explains a difference only when the release's numbers are just what its own way gives; what
comes after is compared from there, so that a rule hides nothing else. Sources: the released code,
the places named in each rule.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fo1_model import boxes as box_ops
from fo1_model.processing import Processor

_CLOSE = 1e-4
_SYSTEM = "<|im_start|>system\n"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What rules look at in a recorded case, beside the tensors."""

    prompt: str
    """The prompt as the release spelled it."""
    flat: Mapping[str, Any]
    """The checkpoint's ``config.json``."""
    processor: Processor
    """Ours, of that checkpoint."""
    auxiliary_size: tuple[int, int]
    """(width, height) of the auxiliary tower's input, pixels."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One tensor in which ours is another than the release's."""

    name: str
    """Name of the tensor, as in the case's files."""
    own: Tensor | None
    """Ours; None where we compute none."""
    reference: Tensor
    """The release's; its ids are expanded, with our ids for image and region slots."""
    case: Case
    """The case."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One intended difference."""

    name: str
    """What is printed beside the tensor."""
    sentence: str
    """What the release does, and what ours does instead."""
    explains: Callable[[Difference], bool]
    """Whether a difference is this one and nothing else."""


def rule_for(difference: Difference) -> Rule | None:
    """Return the first rule that explains a difference; None when it is a fault."""
    return next((rule for rule in RULES if rule.explains(difference)), None)


def inverted(boxes: Tensor) -> Tensor:
    """Return which boxes end before they begin, bool[N] of float[N, 4] xyxy."""
    return (boxes[:, 2:] < boxes[:, :2]).any(dim=1)


def plain_positions(flat: Mapping[str, Any], positions: Tensor) -> bool:
    """Return whether positions int64[3, 1, L] are those of text, as left padding makes them."""
    steps = torch.arange(positions.shape[-1]).expand_as(positions)
    return flat.get("tokenizer_padding_side") == "left" and torch.equal(positions, steps)


def _default_system_turn(given: Difference) -> bool:
    if given.name != "input_ids" or given.own is None:
        return False
    if _SYSTEM in given.case.prompt or "system" not in given.case.prompt:
        return False
    extra = len(given.own) - len(given.reference)
    if extra <= 0 or not torch.equal(given.own[extra:], given.reference):
        return False
    processor = given.case.processor
    lead = processor.tokenizer.decode(given.own[:extra].tolist(), skip_special_tokens=False)
    return lead == f"{_SYSTEM}{processor.family.system}<|im_end|>\n"


def _newline_after_a_text_turn(given: Difference) -> bool:
    if given.name != "input_ids" or given.own is None:
        return False
    processor = given.case.processor
    end = processor.id_of(processor.family.turn_end)
    gap = processor.tokenizer.encode(processor.family.turn_gap, add_special_tokens=False)
    left = given.reference.tolist()
    before, has_image = None, False
    for token in given.own.tolist():
        if left and token == left[0]:
            left.pop(0)
        elif [token] != gap or before != end or has_image:
            return False
        # A turn is over once the one after it has begun.
        has_image = token == processor.token_ids.image or (has_image and before != end)
        before = token
    return not left


def _inverted_boxes(given: Difference) -> bool:
    return given.name == "boxes" and given.own is None and bool(inverted(given.reference).any())


def _boxes_overwritten(given: Difference) -> bool:
    wanted = given.case.flat.get("mm_region_feature_combination") == "concat_aux_pos"
    if given.name != "boxes_aux" or not wanted or given.own is None:
        return False
    width, height = (4 * -(-side // 4) for side in given.case.auxiliary_size)
    normalised = box_ops.to_center_size(box_ops.scale(given.own, 1 / width, 1 / height))
    return normalised.shape == given.reference.shape and bool(
        (normalised - given.reference).abs().max() <= _CLOSE
    )


def _left_padding(given: Difference) -> bool:
    if given.name == "position_ids":
        return plain_positions(given.case.flat, given.reference)
    left = given.case.flat.get("tokenizer_padding_side") == "left"
    return given.name == "rope_deltas" and left and not given.reference.any()


RULES = (
    Rule(
        name="newline after a turn of text",
        sentence="the release leaves out the newline after the end of a system turn, and of a turn "
        "given as a string, from the ids though not from the prompt (mm_utils.py, "
        "make_message_context); ours has it, as the chat template does. All else is compared from "
        "the case's own ids",
        explains=_newline_after_a_text_turn,
    ),
    Rule(
        name="default system turn",
        sentence="the release leaves the default system turn out when any turn says 'system' "
        "(mm_utils.py, prepare_inputs); ours always has it. All else is compared from the case's "
        "own ids",
        explains=_default_system_turn,
    ),
    Rule(
        name="inverted boxes",
        sentence="the release pools a box that ends before it begins as one cell wide and embeds "
        "its negative side; ours refuses it, naming the sample. All else is compared with the "
        "boxes as they are, past that check",
        explains=_inverted_boxes,
    ),
    Rule(
        name="boxes overwritten",
        sentence="with concat_aux_pos the release normalises its caller's boxes in place "
        "(hybrid_finegrained_region_encoder.py); ours works on a copy",
        explains=_boxes_overwritten,
    ),
    Rule(
        name="left padding",
        sentence="with tokenizer_padding_side=left the release loses the image's positions "
        "(omchat_qwen2_5_vl.py); ours takes them from the real ids. All else is compared from the "
        "case's own positions",
        explains=_left_padding,
    ),
)
