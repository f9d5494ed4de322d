from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fo1_model import grammar
from fo1_model.batch import IGNORE
from fo1_model.boxes import check_boxes
from fo1_model.errors import SettingError
from fo1_model.images import fit_image
from fo1_model.processing import Processor
from fo1_model.sizes import SIZES, debug
from fo1_model.vlms.tiny_tokenizer import tiny_tokenizer

BOXES = np.array([[1, 2, 30, 40], [5, 5, 60, 50]], np.float32)
QUESTION = "Please detect red circle in this image."


def picture(width: int = 84, height: int = 56) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def user(count: int = 2, question: str = QUESTION) -> dict[str, str]:
    return {
        "role": "user",
        "content": f"{grammar.IMAGE}\n{grammar.region_prompt(count)}"
        f"{chr(10) if count else ''}{question}",
    }


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_ids_spell_the_release_s_prompt(processor):
    encoded = processor.encode(picture(), BOXES, [user()], for_generation=True)
    slots = "<|image_pad|>" * 6  # 84x56 -> 3 x 2 units of 28 px
    assert processor.tokenizer.decode(encoded.input_ids.tolist(), skip_special_tokens=False) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{slots}<|vision_end|>\n"
        "<region0><|vision_pad|><region1><|vision_pad|>\n"
        f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (encoded.labels == IGNORE).all()


def test_ids_are_those_of_tokenising_the_whole_prompt_at_once(processor):
    """The release tokenises long pieces; the walk's shorter ones must not change a merge."""
    encoded = processor.encode(picture(), BOXES, [user(), assistant("<region1> it is.")])
    text = processor.tokenizer.decode(encoded.input_ids.tolist(), skip_special_tokens=False)
    assert processor.tokenizer.encode(text, add_special_tokens=False) == encoded.input_ids.tolist()


@pytest.mark.parametrize("size", ["tiny", "debug"])
@pytest.mark.parametrize("question", [QUESTION, "2 of what?", " blank", "... and?", "é\n\nb"])
def test_a_plain_question_has_the_ids_of_a_written_line_break(size, question):
    """So those that our bases, and models of the release, were trained on.

    Regions have one line break whatever the gap is.
    """
    processor = Processor(SIZES[size](), tiny_tokenizer())
    talk = [assistant("It is."), {"role": "user", "content": question}, assistant("No.")]

    def encoded(using, content, boxes=None):
        messages = [{"role": "user", "content": content}, *talk]
        sample = using.encode(picture(), boxes, messages)
        return sample.input_ids.tolist(), sample.labels.tolist()

    written = encoded(processor, f"<image>\n{question}")
    assert encoded(processor, grammar.image_question(question)) == written
    regional = grammar.image_question(question, 2)
    assert regional == f"<image>\n<region0><regionfeat><region1><regionfeat>\n{question}"
    without = Processor(replace(SIZES[size](), image_gap=""), tiny_tokenizer())
    assert encoded(without, regional, BOXES) == encoded(processor, regional, BOXES)
    ids, _ = encoded(without, grammar.image_question(question))
    break_ = processor.tokenizer.encode("\n", add_special_tokens=False)
    place = written[0].index(processor.id_of("<|vision_end|>")) + 1
    assert ids == written[0][:place] + written[0][place + len(break_) :]


def test_only_answers_are_supervised_with_their_end(processor):
    answers = ["<ground>red circle</ground><objects><region0></objects>", "<region1>"]
    messages = [
        user(),
        assistant(answers[0]),
        {"role": "user", "content": "Anything else?"},
        assistant(answers[1]),
    ]
    encoded = processor.encode(picture(), BOXES, messages)
    supervised = encoded.labels != IGNORE
    assert torch.equal(encoded.labels[supervised], encoded.input_ids[supervised])
    text = processor.tokenizer.decode(
        encoded.labels[supervised].tolist(), skip_special_tokens=False
    )
    assert text == f"{answers[0]}<|im_end|>{answers[1]}<|im_end|>"


def test_training_ids_start_with_the_ids_that_generation_starts_from(processor):
    for answer in ("None", "\nThere are 0.", " a"):
        prompt = processor.encode(picture(), BOXES, [user()], for_generation=True).input_ids
        whole = processor.encode(picture(), BOXES, [user(), assistant(answer)])
        assert torch.equal(whole.input_ids[: len(prompt)], prompt)
        assert (whole.labels[: len(prompt)] == IGNORE).all()
        assert processor.decode(whole.labels[len(prompt) :].tolist()[:-1]) == answer


def test_own_system_turn_replaces_the_default(processor):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "The system?"},
    ]
    text = processor.tokenizer.decode(processor.encode(None, None, messages).input_ids.tolist())
    assert text.count("<|im_start|>system") == 1
    assert "Be brief." in text


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=0, max_size=3),
    st.lists(st.sampled_from(["hi", "two words", "<region0>", "\n"]), max_size=3),
)
def test_slots_and_features_always_match(counts, texts):
    processor = _shared_processor()
    first = 0
    content = ""
    for count in counts:
        content += f"{grammar.IMAGE}\n{grammar.region_prompt(count, first)}\n"
        first += count
    content += "".join(text for text in texts if first or "region" not in text)
    images = [picture(56 + 28 * index) for index in range(len(counts))]
    boxes = [np.zeros((count, 4), np.float32) for count in counts]
    encoded = processor.encode(images, boxes, [{"role": "user", "content": content}])
    ids = encoded.input_ids
    assert (ids == processor.token_ids.region).sum() == sum(counts) == sum(map(len, encoded.boxes))
    assert (ids == processor.token_ids.image).sum() == sum(
        processor.family.num_image_tokens(grid) for grid in encoded.grids
    )
    assert encoded.positions.shape == (3, len(ids))
    assert encoded.positions.max() < len(ids)


_PROCESSORS: list[Processor] = []


def _shared_processor() -> Processor:
    if not _PROCESSORS:
        _PROCESSORS.append(Processor(debug(), tiny_tokenizer()))
    return _PROCESSORS[0]


@pytest.mark.parametrize(
    ("boxes", "messages", "message"),
    [
        (BOXES, [user(1)], "'s7' has 1 <regionfeat> slots for 2"),
        (BOXES, [{"role": "user", "content": "no image"}], "'s7' has 0 <image> slots for 1"),
        (BOXES, [user(2, "What is <region2>?")], "'s7' mentions <region2> but has 2 boxes"),
        (BOXES, [user(), assistant("<Region5>")], "'s7' mentions <region5>"),
        (np.zeros((101, 4)), [user(101)], "101 boxes, over ModelConfig.num_region_tokens=100"),
        (np.array([[0, 0, np.nan, 1]]), [user(1)], "'s7' has a bad box 0"),
        (np.array([[0, 0, 9, 9], [5, 0, 4, 9]]), [user(2)], "'s7' has a bad box 1"),
        (np.zeros((2, 5)), [user(2)], r"'s7' has boxes of shape \(2, 5\)"),
    ],
)
def test_broken_samples_are_named(processor, boxes, messages, message):
    with pytest.raises(ValueError, match=message) as caught:
        processor.encode(picture(), boxes, messages, sample_id="s7")
    # A person gives boxes; who writes the messages' slots and mentions is a program.
    assert isinstance(caught.value, SettingError) != (boxes is BOXES)


def test_every_error_comes_before_any_compute(processor, monkeypatch):
    """Also when only the last of several images is broken."""

    def must_not_run(*_):
        raise AssertionError("an image was processed before the sample was checked")

    monkeypatch.setattr(processor.family, "preprocess", must_not_run)
    monkeypatch.setattr("fo1_model.processing.fit_image", must_not_run)
    monkeypatch.setattr("fo1_model.processing.auxiliary_image", must_not_run)
    two = {
        "role": "user",
        "content": f"{grammar.IMAGE}{grammar.IMAGE}{grammar.region_prompt(1)}Where?",
    }
    fine = np.zeros((0, 4), np.float32)
    for second, boxes, message in [
        (Image.new("RGB", (0, 5)), [[0, 0, 1, 1]], "image of 0x5 pixels"),
        (picture(), [[0, 0, np.inf, 1]], "bad box 0.*finite"),
        (picture(), [[3, 0, 1, 1]], "bad box 0.*not inverted"),
        (picture(), np.zeros((101, 4)), "num_region_tokens=100"),
    ]:
        with pytest.raises(SettingError, match=message):
            processor.encode([picture(), second], [fine, np.array(boxes)], [two])
    missing = user(2, "What is <region2>?")
    with pytest.raises(ValueError, match="mentions <region2> but has 2 boxes"):
        processor.encode(picture(), BOXES, [missing])


def test_boxes_per_image_must_match(processor):
    with pytest.raises(SettingError, match="1 lists of boxes for 2 images"):
        processor.encode([picture(), picture()], [BOXES], [user()])
    with pytest.raises(SettingError, match="boxes without an image"):
        processor.encode(None, BOXES, [{"role": "user", "content": "hi"}])


def test_boxes_are_clamped_in_a_copy():
    boxes = np.array([[-5, 2, 200, 40], [90, 90, 95, 99]], np.float32)
    before = boxes.copy()
    clamped = check_boxes(boxes, (84, 56))
    assert clamped.tolist() == [[0, 2, 84, 40], [84, 56, 84, 56]]
    assert np.array_equal(boxes, before)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (640, 480)),
        ((10, 20), (28, 28)),
        ((4000, 3000), (2048, 1536)),
        ((3000, 30), (2048, 28)),
        ((2049, 1000), (2048, 999)),
        ((1, 1), (28, 28)),
    ],
)
def test_image_sizes(size, expected):
    assert fit_image(Image.new("RGB", size), 2048).size == expected


@pytest.mark.parametrize(
    ("size", "shortest_edge", "expected"),
    [
        ((640, 480), 1024, (1365, 1024)),  # 640 * 1024 / 480 = 1365.33
        ((480, 640), 1024, (1024, 1365)),
        ((2000, 1500), 1024, (1365, 1024)),  # down as well
        ((1024, 1024), 1024, (1024, 1024)),
        ((1000, 400), 1024, (2048, 819)),  # 2560 x 1024, then 2048 / 2560
        ((90, 6100), 1024, (30, 2048)),  # 1024 x 69404, then 1024 * 2048 / 69404 = 30.2
        ((10, 20), 56, (56, 56)),  # 28 x 28 first
        ((3000, 28), 28, (2048, 28)),
    ],
)
def test_the_short_edge_is_scaled_and_the_long_side_capped(size, shortest_edge, expected):
    """Worked by hand from the release's rule: truncated after the factor, and after the cap."""
    assert fit_image(Image.new("RGB", size), 2048, shortest_edge).size == expected


@pytest.mark.parametrize("width", [333, 481, 601, 777])
def test_the_short_edge_is_truncated_as_the_release_truncates_it(width):
    height = width + 100
    factor = 1024 / width
    fitted = fit_image(Image.new("RGB", (width, height)), 2048, 1024)
    assert fitted.size == (int(width * factor), int(height * factor))


def test_boxes_stay_in_original_pixels_when_the_short_edge_is_scaled(processor):
    scaling = Processor(replace(processor.config, shortest_edge=112), processor.tokenizer)
    plain, scaled = (
        one.encode(picture(84, 56), BOXES, [user()], for_generation=True)
        for one in (processor, scaling)
    )
    assert torch.equal(scaled.boxes[0], plain.boxes[0])
    assert scaled.sizes == plain.sizes == ((84, 56),)
    # 84x56 px and 168x112 px in patches of 14
    assert (plain.grids[0], scaled.grids[0]) == ((4, 6), (8, 12))


def test_image_becomes_rgb():
    assert fit_image(Image.new("L", (30, 30)), 2048).mode == "RGB"


def test_empty_image_is_named():
    with pytest.raises(SettingError, match="'s7' has an image of 0x5"):
        fit_image(Image.new("RGB", (0, 5)), 2048, sample_id="s7")


@pytest.mark.parametrize("pad", ["right", "left"])
def test_collate(processor, sample, pad):
    samples = [sample(84, 56, 2, "None"), sample(28, 140, 0, "a"), sample()]
    batch = processor.collate(samples, pad=pad)
    for row, one in enumerate(samples):
        real = batch.attention_mask[row].bool()
        assert torch.equal(batch.input_ids[row, real], one.input_ids)
        assert torch.equal(batch.labels[row, real], one.labels)
        assert torch.equal(batch.positions[:, row, real], one.positions)
        assert (batch.input_ids[row, ~real] == processor.pad_id).all()
        assert (batch.labels[row, ~real] == IGNORE).all()
        edge = real[0 if pad == "right" else -1]
        assert edge
    assert batch.grids == samples[0].grids + samples[1].grids
    assert [len(boxes) for boxes in batch.boxes] == [2, 0]
    assert batch.to("cpu").sample_ids == batch.sample_ids


def test_collate_refuses_nothing_and_unknown_padding(processor, sample):
    with pytest.raises(ValueError, match="collate"):
        processor.collate([])
    with pytest.raises(ValueError, match="both"):
        processor.collate([sample()], pad="both")


def test_extending_twice_changes_nothing(processor):
    again = Processor(debug(), processor.tokenizer)
    assert again.token_ids == processor.token_ids
    base = len(tiny_tokenizer())
    assert processor.token_ids.new == tuple(range(base, base + 104))


def test_decoding_stops_at_the_end_of_the_turn(processor):
    ids = processor.tokenizer.encode("<region3> a<|im_end|>\nmore", add_special_tokens=False)
    assert processor.decode(ids) == "<region3> a"


def test_a_tokenizer_of_another_family_is_named():
    tokenizer = tiny_tokenizer()
    family_token = "<|vision_pad|>"
    known = tokenizer.get_vocab()
    tokenizer.get_vocab = lambda: {k: v for k, v in known.items() if k != family_token}
    with pytest.raises(SettingError, match=r"lacks '<\|vision_pad\|>'.*qwen2_5_vl"):
        Processor(debug(), tokenizer)
