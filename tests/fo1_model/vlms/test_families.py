"""One suite over all VLM families, against the transformers model and processor of each."""

import copy
import re

import numpy as np
import pytest
import torch
from PIL import Image

from fo1_model import grammar
from fo1_model.errors import SettingError
from fo1_model.generation import GenerationConfig
from fo1_model.processing import Processor, extend_tokenizer
from fo1_model.stages import parameter_groups
from tests.fo1_model.conftest import picture, some_boxes
from tests.fo1_model.small_families import small_model, small_tokenizer
from tests.fo1_model.vlms.base_processors import base_inputs
from tests.fo1_model.vlms.chat_forms import prompt
from tests.ties import assert_same_tokens, greedy

QUESTION = "How many red circle are there?"
ANSWER = "<ground>red circle</ground><objects><region0></objects>"


def ask(processor, image, boxes=None, answer=None):
    """A user's turn about an image (or none), in the wording of the pipelines."""
    count = 0 if boxes is None else len(boxes)
    regions = f"\n{grammar.region_prompt(count)}\n" if count else ""
    content = (grammar.IMAGE if image is not None else "") + regions + QUESTION
    messages = [{"role": "user", "content": content}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    name = "none" if image is None else f"{image.size}/{count}"
    return processor.encode(image, boxes, messages, for_generation=answer is None, sample_id=name)


def all_logits(model, batch):
    return model.logits(model.decode(model.embed(batch), batch.attention_mask, batch.positions))


def after_stage_1(model, processor):
    """A trained copy: ten steps with a weight decay that would visibly shrink what it touched."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, "stage1", 1e-2, weight_decay=0.5))
    boxes = some_boxes(2, 70, 64)
    batch = processor.collate([ask(processor, picture(70, 64), boxes, ANSWER)])
    model.train()
    for _ in range(10):
        optimizer.zero_grad()
        model(batch).loss_sum.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("size", [(97, 131), (310, 83), (28, 60), (300, 300), None])
def test_prompt_and_pixels_are_the_base_processor_s(family, small, size):
    """Ids, so the number of image tokens, and preprocessing, for odd sizes and without an image."""
    _, processor = small
    image = picture(*size) if size else None
    expected = base_inputs(family, prompt(family, QUESTION, images=int(image is not None)), image)
    encoded = ask(processor, image)
    assert encoded.input_ids.tolist() == expected["input_ids"][0].tolist()
    if image is not None:
        pixels = encoded.pixels[0]
        assert torch.equal(pixels.flatten(), expected["pixel_values"].flatten())
        count = processor.family.num_image_tokens(encoded.grids[0])
        assert (encoded.input_ids == processor.token_ids.image).sum() == count > 0


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "after stage 1"])
def test_without_boxes_logits_and_greedy_text_are_the_base_s_own(family, small, trained):
    """Bit for bit, over the base vocabulary; the base is the transformers model from before any
    training."""
    model, processor = small
    base, rows = model.vlm, model.family.vocabulary_rows
    assert min(processor.token_ids.new) == rows
    if trained:
        model = after_stage_1(model, processor)
    assert (model.vlm is base) != trained
    for image in (picture(97, 131), picture(310, 83, seed=1), None):
        inputs = base_inputs(family, prompt(family, QUESTION, images=int(image is not None)), image)
        one = ask(processor, image)
        batch = processor.collate([one])
        with torch.no_grad():
            expected = base(**inputs).logits
            logits = all_logits(model, batch)
        assert torch.equal(logits[..., :rows], expected.float())
        masked = model.without_new_tokens(logits)
        assert torch.equal(masked[..., :rows], expected.float())
        assert (masked[..., rows:] == float("-inf")).all()
        said = base.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=list(processor.stop_ids),
            pad_token_id=processor.pad_id,
        )[0, len(one.input_ids) :].tolist()
        settings = GenerationConfig(max_new_tokens=8)
        (ours,) = greedy(
            model,
            processor,
            [one],
            settings,
            logits_hook=lambda _, x, m=model: m.without_new_tokens(x),
        )
        assert_same_tokens(said, ours)
        assert len(set(said)) > 2, "a base that repeats itself would hide much"


def several(processor, images, *, regions=False):
    """Two questions about several images, the second plain; with regions, two of each image."""
    lines = [
        f"{grammar.IMAGE}\n{grammar.region_prompt(2, first=2 * i)}\n" for i in range(len(images))
    ]
    places = "".join(lines) if regions else grammar.IMAGE * len(images)
    boxes = [some_boxes(2, *image.size) for image in images] if regions else None
    messages = [
        {"role": "user", "content": f"{places}{QUESTION}"},
        {"role": "assistant", "content": "There are 3."},
        {"role": "user", "content": QUESTION},
    ]
    return processor.encode(images, boxes, messages, for_generation=True, sample_id="several")


def test_several_images_and_turns_are_the_base_s_own_too(family, small):
    """Two images and two questions in one sequence: order of images, positions after the first."""
    model, processor = small
    images = [picture(97, 131), picture(310, 83, seed=1)]
    one = several(processor, images)
    inputs = base_inputs(family, prompt(family, QUESTION, images=2), images)
    inputs["input_ids"] = one.input_ids[None]
    inputs["attention_mask"] = torch.ones(1, len(one.input_ids)).long()
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == processor.token_ids.image).int()
    with torch.no_grad():
        expected = model.vlm(**inputs).logits
        logits = all_logits(model, processor.collate([one]))
    assert torch.equal(logits[..., : expected.shape[-1]], expected.float())


@pytest.mark.parametrize("pad", ["right", "left"])
def test_padding_changes_no_logit(small, pad):
    """Plain and regional turns, one image, two and none; beyond rounding nothing moves.

    A delta net computes in float32 whatever comes in, in chunks that padding moves: there rounding
    is measured against the largest logit. (To the right, where chunks stay, float64 gives no
    difference at all.)
    """
    model, processor = small
    images = [picture(97, 131), picture(310, 83, seed=1)]
    samples = [
        ask(processor, images[0], some_boxes(3, 97, 131)),
        ask(processor, images[1]),
        several(processor, images),
        several(processor, images, regions=True),
        ask(processor, None),
    ]
    with torch.no_grad():
        together = all_logits(model, processor.collate(samples, pad=pad))
        for row, one in zip(together, samples, strict=True):
            size = len(one.input_ids)
            own = row[:size] if pad == "right" else row[-size:]
            (alone,) = all_logits(model, processor.collate([one]))
            scale = 1.0 if model.family.packs else float(alone.abs().max())
            torch.testing.assert_close(own, alone, rtol=1e-4, atol=1e-4 * scale)


def test_regions_stand_on_lines_of_their_own_in_every_family(small):
    _, processor = small
    written = processor.tokenizer.decode(
        several(processor, [picture(97, 131), picture(64, 64)], regions=True).input_ids
    )
    own = processor.family
    if own.joins_text:  # SentencePiece has a blank before every text between tokens
        written = written.replace("> ", ">")
    end = (own.image_end or (own.image_token,))[-1]
    assert f"{end}\n<region0>{own.region_slot}<region1>{own.region_slot}\n" in written
    assert f"\n<region2>{own.region_slot}<region3>{own.region_slot}\n{QUESTION}" in written


def test_map_is_in_image_order_and_at_its_place(small):
    """A bright patch stands out in its own cell of the map, found by its box in the image.

    Attention writes nothing, so nothing moves between patches. Images are twice as wide as high.
    """
    model, _ = small
    family, vlm = model.family, copy.deepcopy(model.vlm)
    written = set()
    with torch.no_grad():
        for name, parameter in family.vision_tower(vlm).named_parameters():
            if any(
                part in name
                for part in ("attn.proj.", "attn.out_proj.", "attention.projection_layer.")
            ):
                parameter.zero_()
                written.add(name.rpartition(".")[0])
        assert len(written) == 2, "one a block"

        def mapped(image):
            pixels, grid = family.preprocess(image)
            return family.encode_images(vlm, pixels, [grid])[1][0], family.input_size(grid)

        width, height = 392, 196
        black = Image.new("RGB", (width, height))
        values, (input_width, input_height) = mapped(black)
        assert values.shape[0] == family.primary_dim
        rows, columns = values.shape[1:]
        for row, column in [(0, 0), (3, 1), (rows - 1, columns - 2), (1, columns - 1)]:
            left, right = (
                round(x * family.patch_size * width / input_width) for x in (column, column + 1)
            )
            top, bottom = (
                round(y * family.patch_size * height / input_height) for y in (row, row + 1)
            )
            image = black.copy()
            image.paste((255, 255, 255), (left, top, right, bottom))
            change = (mapped(image)[0] - values).abs().sum(0)
            assert divmod(int(change.argmax()), columns) == (row, column)


def test_packing_images_changes_nothing(small):
    model, _ = small
    vlm, family = copy.deepcopy(model.vlm).double(), model.family
    inputs = [family.preprocess(picture(*size)) for size in [(130, 70), (60, 200), (56, 56)]]
    with torch.no_grad():
        tokens, maps = family.encode_images(
            vlm, torch.cat([pixels for pixels, _ in inputs]), [grid for _, grid in inputs]
        )
        alone = [family.encode_images(vlm, pixels, [grid]) for pixels, grid in inputs]
    torch.testing.assert_close(tokens, torch.cat([each for each, _ in alone]), rtol=0, atol=1e-11)
    assert len(tokens) == sum(family.num_image_tokens(grid) for _, grid in inputs)
    for one, (_, (expected,)) in zip(maps, alone, strict=True):
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-11)


def test_region_features_change_when_a_box_moves_and_only_then(small):
    model, processor = small
    boxes = some_boxes(3, 97, 131)
    moved = boxes.copy()
    moved[1] += np.float32([3, -2, 3, -2])
    embedded = []
    with torch.no_grad():
        for each in (boxes, boxes.copy(), moved):
            one = ask(processor, picture(97, 131), np.clip(each, 0, [97, 131, 97, 131]))
            embedded.append(model.embed(processor.collate([one]))[0])
    slots = (one.input_ids == processor.token_ids.region).nonzero().flatten().tolist()
    assert torch.equal(embedded[0], embedded[1])
    assert (embedded[0] != embedded[2]).any(dim=1).nonzero().flatten().tolist() == [slots[1]]


def test_the_map_knows_its_place_over_the_original_image(small):
    """The tower's input is the whole image, also where its last pixels fill no patch."""
    model, processor = small
    seen = []
    handle = model.region_encoder.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[1])
    )
    one = ask(processor, picture(120, 90), some_boxes(1, 120, 90))
    with torch.no_grad():
        model.embed(processor.collate([one]))
    handle.remove()
    family, rows = model.family, seen[0].values.shape[1]
    of_any_size = (112 / 120, 84 / 90, 6)
    # scaled up to 256 x 256 px or more
    large = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
    expected = {
        **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "glm4v"), of_any_size),
        **dict.fromkeys(large, (320 / 120, 224 / 90, 14)),
    }.get(processor.config.vlm.family, (60 / 120, 60 / 90, 4))
    assert (*seen[0].scale, rows) == pytest.approx(expected)
    assert seen[0].stride == family.patch_size


def test_a_map_with_odd_sides_gets_its_last_line_twice():
    """As SigLIP's 27 x 27 cells of 384 px."""
    model, processor = small_model("llava_onevision", side=70)
    seen = []
    model.region_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    one = ask(processor, picture(70, 140), some_boxes(2, 70, 140))
    batch = processor.collate([one])
    with torch.no_grad():
        model.embed(batch)
        _, (values,) = model.family.encode_images(model.vlm, batch.pixels, batch.grids)
    padded, scale, _ = seen[0]
    assert values.shape[1:] == (5, 5)
    assert padded.shape[1:] == (6, 6)
    assert torch.equal(padded[:, :5, :5], values)
    assert torch.equal(padded[:, 5, :5], values[:, 4])
    assert torch.equal(padded[:, :5, 5], values[:, :, 4])
    assert scale == (1.0, 0.5)


def test_batched_answers_equal_those_one_by_one(small):
    """Mixed sizes and numbers of boxes, no boxes, no image; most answers are not each other's."""
    model, processor = small
    samples = [
        ask(processor, picture(97, 131), some_boxes(3, 97, 131)),
        ask(processor, picture(310, 83, seed=1), some_boxes(12, 310, 83)),
        ask(processor, picture(64, 64, seed=2)),
        ask(processor, None),
    ]
    settings = GenerationConfig(max_new_tokens=8)
    together = greedy(model, processor, samples, settings)
    for found, one in zip(together, samples, strict=True):
        [alone] = greedy(model, processor, [one], settings)
        assert_same_tokens(found.tokens, alone)
    assert len({tuple(found.tokens) for found in together}) > 2


def test_an_answer_is_read_as_it_was_written(small):
    """Training starts from the ids that generation starts from, whatever stands between head and
    answer."""
    _, processor = small
    start = ask(processor, None).input_ids
    whole = ask(processor, None, answer="There are 3.")
    assert torch.equal(whole.input_ids[: len(start)], start)
    supervised = whole.labels[whole.labels != -100]
    assert (whole.labels[: len(start)] == -100).all()
    assert processor.decode(supervised.tolist()) == "There are 3."
    assert supervised[-1] == processor.id_of(processor.family.turn_end)


def test_a_grounded_answer_means_what_was_written(small):
    """Also where a tokenizer puts blanks of its own between tags and phrases."""
    _, processor = small
    answer = f"{ANSWER}\n<ground>cup</ground><objects><region1><region2></objects>"
    image = picture(70, 64)
    whole = ask(processor, image, some_boxes(3, *image.size), answer=answer)
    read = processor.decode(whole.labels[whole.labels != -100].tolist())
    assert grammar.parse(read, 3) == grammar.parse(answer, 3)


def test_blank_is_an_image_and_ties_the_tower_to_the_loss(small):
    model, processor = copy.deepcopy(small[0]), small[1]
    pixels, grid = model.family.blank()
    tokens, (values,) = model.family.encode_images(model.vlm, pixels, [grid])
    assert len(tokens) == model.family.num_image_tokens(grid)
    assert values.shape[0] == model.family.primary_dim
    parameter_groups(model, "stage2_primary", 1e-3)
    model(processor.collate([ask(processor, None, answer="None")])).loss_sum.backward()
    assert [
        name for name, p in model.named_parameters() if p.requires_grad and p.grad is None
    ] == []


def test_each_token_that_the_tokenizer_lacks_is_named(family, small):
    model, _ = small
    own = model.family
    for token in {own.image_token, *own.image_start, *own.image_end, own.region_slot, own.turn_end}:
        tokenizer = small_tokenizer(family)
        extend_tokenizer(tokenizer, model.model_config.num_region_tokens)
        known = {text: index for text, index in tokenizer.get_vocab().items() if text != token}
        tokenizer.get_vocab = lambda known=known: known
        with pytest.raises(
            SettingError, match=rf"lacks {re.escape(repr(token))}.*'{family}' needs"
        ):
            Processor(model.model_config, tokenizer)
