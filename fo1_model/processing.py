"""Images, boxes and messages become ids, labels, positions and pixels, in one walk.

Labels are emitted by the same walk over the messages as ids, so that they cannot drift apart.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fo1_model import grammar
from fo1_model.auxiliary_tower import auxiliary_image
from fo1_model.batch import IGNORE, Batch, Encoded, TokenIds
from fo1_model.boxes import check_boxes
from fo1_model.config import ModelConfig
from fo1_model.errors import SettingError
from fo1_model.images import check_image, fit_image
from fo1_model.vlms import Grid, build_family
from fo1_model.vlms.token_writer import TokenWriter

if TYPE_CHECKING:
    from transformers import BatchFeature

_STAND_INS = re.compile(f"({grammar.IMAGE}|{grammar.REGION_FEATURE})")


def extend_tokenizer(tokenizer: PreTrainedTokenizerFast, num_region_tokens: int) -> None:
    """Append the region language's tokens that ``tokenizer`` lacks, in place.

    They are ordinary tokens, not special ones: decoding an answer keeps them.
    """
    # Qwen's own vocabulary has none of them; a folder of ours or the release's has them all.
    known = tokenizer.get_vocab()
    tokenizer.add_tokens(
        [token for token in grammar.new_tokens(num_region_tokens) if token not in known]
    )


class Processor:
    """Makes model inputs and reads model outputs.

    Args:
        config: The model's.
        tokenizer: The base family's, extended in place by what it lacks.

    Raises:
        SettingError: When the tokenizer lacks one of the family's own tokens.
    """

    def __init__(self, config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.family = build_family(config.vlm)
        self.num_region_tokens = config.num_region_tokens
        self.release_files: Mapping[str, bytes] = {}
        """Files of the released folder that the model came from, see ``release.kept_files``."""
        extend_tokenizer(tokenizer, config.num_region_tokens)
        self._vocabulary: Mapping[str, int] = tokenizer.get_vocab()
        # Asked for here, so that a wrong tokenizer fails before the first image is read.
        for token in (*self.family.image_start, *self.family.image_end, self.family.turn_end):
            self.id_of(token)
        self.token_ids = TokenIds(
            image=self.id_of(self.family.image_token),
            region=self.id_of(self.family.region_slot),
            new=tuple(self.id_of(token) for token in grammar.new_tokens(config.num_region_tokens)),
        )
        self.stop_ids = tuple(self.id_of(token) for token in self.family.stop_tokens)
        self.pad_id = self.id_of(self.family.pad_token)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Processor":
        """Read the processor of a model folder; see ``fo1_model.checkpoint.load_processor``."""
        from fo1_model.checkpoint import load_processor

        return load_processor(path)

    def save_pretrained(self, path: str | Path) -> None:
        """Write config and tokenizer; see ``fo1_model.checkpoint.write_processor``."""
        from fo1_model.checkpoint import write_processor

        write_processor(self, path)

    def id_of(self, token: str) -> int:
        """Return the id of a token that the vocabulary must have.

        Raises:
            SettingError: When it has not.
        """
        if token not in self._vocabulary:
            raise SettingError(
                f"the tokenizer lacks {token!r}, which the family {self.config.vlm.family!r} needs"
            )
        return self._vocabulary[token]

    def encode(
        self,
        image: Image.Image | Sequence[Image.Image] | None,
        boxes: np.ndarray | Sequence[np.ndarray] | None,
        messages: Sequence[Mapping[str, str]],
        *,
        for_generation: bool = False,
        sample_id: str = "",
        loss_weight: float = 1.0,
    ) -> Encoded:
        """Return one sample, ready to be collated.

        Args:
            image: RGB, one, several or none; several are numbered on: the second image's regions
                follow the first's.
            boxes: float32[N, 4] xyxy in original pixels, per image when ``image`` is a sequence;
                None means no boxes.
            messages: Turns ``{"role", "content"}``; contents hold ``<image>`` and ``<regionfeat>``
                as stand-ins.
            for_generation: Whether the last turn is the user's and the assistant's is opened.
            sample_id: Name of the sample in errors.
            loss_weight: Factor of the sample's loss.

        Raises:
            SettingError: Naming the sample, for an image below 1 px, boxes that are not finite or
                inverted, or more boxes than region tokens.
            ValueError: Naming the sample, for slots that do not match images or boxes, or an index
                without a region.
        """
        images = [] if image is None else [image] if isinstance(image, Image.Image) else list(image)
        for one in images:
            check_image(one, sample_id)
        per_image = _boxes_per_image(image, boxes, len(images), sample_id)
        checked = [
            check_boxes(item, one.size, sample_id)
            for item, one in zip(per_image, images, strict=True)
        ]
        # Before any work on pixels: slots and boxes that do not match have no meaning.
        self._check_messages(messages, len(images), sum(len(item) for item in checked), sample_id)
        limits = (self.config.max_long_side, self.config.shortest_edge)
        resized = [fit_image(one, *limits, sample_id) for one in images]
        inputs = self.family.preprocess_all(resized)
        grids = tuple(grid for _, grid in inputs)
        ids, labels, starts = self._walk(messages, grids, for_generation=for_generation)
        return Encoded(
            sample_id=sample_id,
            input_ids=torch.tensor(ids),
            labels=torch.tensor(labels),
            positions=self.family.positions(len(ids), list(zip(starts, grids, strict=True))),
            pixels=tuple(pixels for pixels, _ in inputs),
            grids=grids,
            auxiliary=tuple(auxiliary_image(one, self.config.auxiliary) for one in resized),
            sizes=tuple(one.size for one in images),
            boxes=tuple(torch.from_numpy(item) for item in checked),
            loss_weight=loss_weight,
        )

    def _check_messages(
        self, messages: Sequence[Mapping[str, str]], num_images: int, num_boxes: int, sample_id: str
    ) -> None:
        """Raise when slots and mentions in the messages do not fit the images and boxes."""
        limit = self.config.num_region_tokens
        if num_boxes > limit:
            raise SettingError(
                f"sample {sample_id!r} has {num_boxes} boxes, over "
                f"ModelConfig.num_region_tokens={limit}; keep the best-scored ones before "
                "the prompt is written"
            )
        contents = [message["content"] for message in messages]
        for token, count in ((grammar.IMAGE, num_images), (grammar.REGION_FEATURE, num_boxes)):
            slots = sum(content.count(token) for content in contents)
            if slots != count:
                raise ValueError(f"sample {sample_id!r} has {slots} {token} slots for {count}")
        # An index without a region would be a word without a meaning.
        for content in contents:
            for index in grammar.mentioned_regions(content):
                if index >= num_boxes:
                    raise ValueError(
                        f"sample {sample_id!r} mentions <region{index}> but has {num_boxes} boxes"
                    )

    def _walk(
        self, messages: Sequence[Mapping[str, str]], grids: Sequence[Grid], *, for_generation: bool
    ) -> tuple[list[int], list[int], list[int]]:
        """Return ids, labels and the position of every image's first token, emitted together.

        An answer is tokenised apart from what is around it, so training sees the very ids that
        generation starts from; so are heads, contents and ends unless the family joins them.
        """
        family = self.family
        writer = TokenWriter(self._tokens, joins_text=family.joins_text)
        remaining = iter(grids)
        turns = list(messages)
        if family.system is not None and (not turns or turns[0]["role"] != "system"):
            turns.insert(0, {"role": "system", "content": family.system})
        writer.tokens(self._tokens(family.opening))
        for turn in turns:
            role = turn["role"]
            supervised = role == "assistant" and not for_generation
            head, content = family.write_turn(role, turn["content"])
            writer.text(head)
            for piece in self._with_gaps(_split(content)):
                if piece == grammar.IMAGE:
                    self._write_image(writer, next(remaining))
                elif piece == grammar.REGION_FEATURE:
                    writer.slots(family.region_slot, self.token_ids.region)
                elif role == "assistant":
                    writer.answer(piece, supervised=supervised)
                else:
                    writer.text(piece)
            end, gap = family.close_turn(role)
            if end:
                # The end of an answer is supervised, or the model would never stop.
                writer.tokens([self.id_of(end)], supervised=supervised)
            writer.text(gap)
        if for_generation:
            writer.text(family.write_turn("assistant", "")[0])
        writer.flush()
        slots = [place for place, index in enumerate(writer.ids) if index == self.token_ids.image]
        counts = [family.num_image_tokens(grid) for grid in grids]
        starts = [slots[sum(counts[:image])] for image in range(len(counts))]
        return writer.ids, writer.labels, starts

    def _write_image(self, writer: TokenWriter, grid: Grid) -> None:
        """Write an image's tokens and what stands around them."""
        family = self.family
        for token in family.image_start:
            writer.slots(token, self.id_of(token))
        writer.text(family.image_mark)
        writer.slots(family.image_token, self.token_ids.image, family.num_image_tokens(grid))
        for token in family.image_end:
            writer.slots(token, self.id_of(token))

    def _with_gaps(self, pieces: Sequence[str]) -> list[str]:
        """Return the pieces of a turn with what stands between an image and what follows it.

        A line break that is written out stays the only one: regions have theirs in the message.
        """
        found: list[str] = []
        for place, piece in enumerate(pieces, 1):
            after = pieces[place] if place < len(pieces) else ""
            found.append(piece)
            if piece == grammar.IMAGE and after and not after.startswith("\n"):
                gap = self.family.images_gap if after == piece else self.config.image_gap
                found += [gap] if gap else []
        return found

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the answer's text, up to the first stop token; region tokens are kept."""
        kept = []
        for token in ids:
            if token in self.stop_ids:
                break
            kept.append(token)
        # Region tokens are ordinary ones; a clean-up of blanks would change phrases.
        text = self.tokenizer.decode(
            kept, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text).removeprefix(self.family.answer_lead)

    def collate(self, samples: Sequence[Encoded], *, pad: str = "right") -> Batch:
        """Return one batch, a row a sample.

        Args:
            samples: At least one.
            pad: Side of the padding: ``right`` for training, ``left`` for generation.

        Raises:
            ValueError: For no samples or another ``pad``.
        """
        if pad not in ("right", "left") or not samples:
            raise ValueError(
                f"collate needs samples and pad 'right' or 'left', got {len(samples)} and {pad!r}"
            )
        length = max(len(sample.input_ids) for sample in samples)
        shape = (len(samples), length)
        ids, labels = torch.full(shape, self.pad_id), torch.full(shape, IGNORE)
        mask, weights = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
        positions = torch.zeros((self.family.num_position_axes, *shape), dtype=torch.int64)
        for row, sample in enumerate(samples):
            size = len(sample.input_ids)
            span = slice(0, size) if pad == "right" else slice(length - size, length)
            ids[row, span] = sample.input_ids
            labels[row, span] = sample.labels
            mask[row, span] = 1
            weights[row, span] = sample.loss_weight
            positions[:, row, span] = sample.positions
        return self._batch(
            samples,
            input_ids=ids,
            attention_mask=mask,
            labels=labels,
            positions=positions,
            loss_weights=weights,
        )

    def pack(self, samples: Sequence[Encoded]) -> Batch:
        """Return one row of all samples end to end, without padding, for training.

        Attention stays within each sample and positions begin anew, so the loss is ``collate``'s.
        It saves time with FlashAttention, which skips what lies between samples; SDPA computes and
        masks it.

        Args:
            samples: At least one.

        Raises:
            ValueError: For no samples.
            SettingError: For a family whose decoder would mix them.
        """
        if not samples:
            raise ValueError("pack needs samples, got 0")
        if not self.family.packs:
            raise SettingError(
                f"family {self.config.vlm.family!r} cannot be packed: the states of its decoder "
                "run on from one sample of a row into the next; train it without packing"
            )
        ids = torch.cat([sample.input_ids for sample in samples])[None]
        lengths = [len(sample.input_ids) for sample in samples]
        weights = torch.tensor([sample.loss_weight for sample in samples], dtype=torch.float32)
        return self._batch(
            samples,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            labels=torch.cat([sample.labels for sample in samples])[None],
            positions=torch.cat([sample.positions for sample in samples], dim=1)[:, None],
            loss_weights=weights.repeat_interleave(torch.tensor(lengths))[None],
            places=torch.cat([torch.arange(length) for length in lengths])[None],
        )

    def _batch(self, samples: Sequence[Encoded], **text: Tensor) -> Batch:
        """Return a batch of these text tensors and the samples' images and boxes, in order."""
        pixels = [tensor for sample in samples for tensor in sample.pixels]
        return Batch(
            **text,
            sample_ids=tuple(sample.sample_id for sample in samples),
            pixels=torch.cat(pixels) if pixels else torch.zeros(0, self.family.blank()[0].shape[1]),
            grids=tuple(grid for sample in samples for grid in sample.grids),
            auxiliary=tuple(tensor for sample in samples for tensor in sample.auxiliary),
            sizes=tuple(size for sample in samples for size in sample.sizes),
            boxes=tuple(tensor for sample in samples for tensor in sample.boxes),
        )

    def __call__(self, *given: Any, **options: Any) -> "BatchFeature":
        """Return tensors by name; see ``fo1_model.pretrained.inputs.model_inputs``."""
        from fo1_model.pretrained.inputs import model_inputs

        return model_inputs(self, *given, **options)


def _boxes_per_image(
    image: Image.Image | Sequence[Image.Image] | None,
    boxes: np.ndarray | Sequence[np.ndarray] | None,
    num_images: int,
    sample_id: str,
) -> list[np.ndarray]:
    """Return boxes in the form of one array an image."""
    if boxes is None:
        return [np.zeros((0, 4), np.float32)] * num_images
    if image is None and len(boxes):
        raise SettingError(f"sample {sample_id!r} has boxes without an image")
    per_image = (
        [np.asarray(boxes)]
        if isinstance(image, Image.Image)
        else [np.asarray(item) for item in boxes]
    )
    if len(per_image) != num_images:
        raise SettingError(
            f"sample {sample_id!r} has {len(per_image)} lists of boxes for {num_images} images"
        )
    return per_image


def _split(content: str) -> list[str]:
    """Return text pieces and stand-ins, in order, without empty pieces."""
    return [piece for piece in _STAND_INS.split(content) if piece]
