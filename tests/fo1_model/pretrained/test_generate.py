"""transformers' generate on our model, against our own decoder and slow references."""

import pytest
import torch
import torch.nn.functional as F
from transformers import StaticCache

from fo1_model.errors import SettingError
from fo1_model.generation import GenerationConfig, generate
from fo1_model.vlms import VLM_FAMILIES
from tests.fo1_model.pretrained.conftest import QUESTION, regional
from tests.fo1_model.small_families import small_model
from tests.ties import assert_same_tokens, greedy

STEPS = 10
_MODELS: dict[str, tuple] = {}


@pytest.fixture(params=sorted(VLM_FAMILIES))
def small(request):
    """Model and processor of a family, not to be changed."""
    if request.param not in _MODELS:
        _MODELS[request.param] = small_model(request.param)
    return _MODELS[request.param]


def encoded(processor, samples):
    return [
        processor.encode(images, boxes, messages, for_generation=True, sample_id=str(index))
        for index, (messages, images, boxes) in enumerate(samples)
    ]


def together(samples):
    return [list(part) for part in zip(*samples, strict=True)]


def all_logits(model, batch):
    hidden = model.decode(model.embed(batch), batch.attention_mask, batch.positions)
    return model.logits(hidden)


def test_generate_says_what_our_decoder_says(small, samples):
    """A batch of two images, one and none, padded on the left; stops are the processor's."""
    model, processor = small
    inputs = processor(*together(samples))
    rows = model.generate(**inputs, max_new_tokens=STEPS)
    rows = rows[:, inputs["input_ids"].shape[1] :]
    config = GenerationConfig(max_new_tokens=STEPS)
    said = greedy(model, processor, encoded(processor, samples), config)
    assert len({tuple(one.tokens) for one in said}) > 1
    for row, one in zip(rows.tolist(), said, strict=True):
        stops = [place for place, token in enumerate(row) if token in processor.stop_ids]
        answer = row[: stops[0] + 1] if stops else row
        assert_same_tokens(answer, one)
        assert set(row[len(answer) :]) <= {processor.pad_id}


def test_positions_are_those_of_our_batches(small, samples):
    model, processor = small
    own = encoded(processor, samples)
    for pad in ("left", "right"):
        batch = processor.collate(own, pad=pad)
        grids = torch.tensor(batch.grids)
        counted = model.count_positions(batch.input_ids, batch.attention_mask, grids)
        assert torch.equal(counted, batch.positions)


def test_logits_and_loss_of_tensors_by_name(small):
    """The loss is the mean over supervised tokens of what a ``Batch`` gives, and by hand."""
    model, processor = small
    given = [regional([(84, 56, 2)], "There are 3."), regional([(60, 84, 1)], "None")]
    inputs = processor(*together(given), for_generation=False)
    own = [
        processor.encode(images, boxes, messages, sample_id=str(index))
        for index, (messages, images, boxes) in enumerate(given)
    ]
    batch = processor.collate(own)
    with torch.no_grad():
        output, ours = model(**inputs), model(batch)
        expected = all_logits(model, batch)
    kept = batch.attention_mask.bool()
    torch.testing.assert_close(output.logits[kept], expected[kept], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, ours.loss_sum / ours.num_tokens)
    by_hand = F.cross_entropy(expected[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, by_hand)
    with torch.no_grad():
        summed = model(**inputs, num_items_in_batch=2).loss
        loss, logits, *_ = model(**inputs, return_dict=False)
    torch.testing.assert_close(summed, ours.loss_sum / 2)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)


def test_rows_are_expanded_with_their_images(small, samples):
    """Beams and several answers a prompt: each copy sees its own row's images and boxes."""
    model, processor = small
    inputs = processor(*together(samples))
    _, expanded = model._expand_inputs_for_generation(expand_size=2, **inputs)
    ids, _ = model._expand_inputs_for_generation(expand_size=2, **inputs)
    twice = processor(*together([sample for sample in samples for _ in range(2)]))
    assert torch.equal(ids, twice["input_ids"])
    for name in ("pixel_values", "auxiliary_values", "boxes"):
        assert len(expanded[name]) == len(twice[name]) == 6
        assert all(map(torch.equal, expanded[name], twice[name]))
    assert torch.equal(expanded["image_grids"], twice["image_grids"])
    assert torch.equal(expanded["image_sizes"], twice["image_sizes"])
    beams = model.generate(**inputs, max_new_tokens=4, num_beams=2)
    alone = model.generate(**processor(*samples[0]), max_new_tokens=4, num_beams=2)
    assert torch.equal(beams[0, -4:], alone[0, -4:])


def test_without_a_cache_the_tokens_are_the_same(small, samples):
    model, processor = small
    inputs = processor(*samples[0])
    cached = model.generate(**inputs, max_new_tokens=5)
    assert torch.equal(cached, model.generate(**inputs, max_new_tokens=5, use_cache=False))


def test_a_conversation_goes_on_from_its_cache(small, samples):
    """The cache holds the images; all ids, mask and grids tell the positions of what is new."""
    model, processor = small
    inputs = processor(*samples[0])
    first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    more = torch.cat([first.sequences, inputs["input_ids"][:, -4:]], dim=1)
    longer = {**inputs, "input_ids": more, "attention_mask": torch.ones_like(more)}
    again = model.generate(**longer, max_new_tokens=4)
    rows = model.generate(**longer, max_new_tokens=4, past_key_values=first.past_key_values)
    assert torch.equal(rows, again)


def test_a_static_cache_gives_the_same_tokens(samples):
    model, processor = _MODELS.setdefault("qwen2_5_vl", small_model("qwen2_5_vl"))
    inputs = processor(*together(samples))
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=400)
    rows = model.generate(**inputs, max_new_tokens=5, past_key_values=cache)
    assert torch.equal(rows, model.generate(**inputs, max_new_tokens=5))


def test_embeddings_alone_lose_no_positions(small, samples):
    """With several axes they need position_ids, and then say the same; else they are counted."""
    model, processor = small
    (sample,) = encoded(processor, samples[:1])
    batch = processor.collate([sample])
    with torch.no_grad():
        embeddings = model.embed(batch)
    given = {"inputs_embeds": embeddings, "attention_mask": batch.attention_mask}
    expected = model.generate(**processor(*samples[0]), max_new_tokens=5)[:, -5:]
    if model.family.num_position_axes > 1:
        with pytest.raises(ValueError, match="inputs_embeds alone do not tell images from text"):
            model.generate(**given, max_new_tokens=5)
        given["position_ids"] = batch.positions
    assert torch.equal(model.generate(**given, max_new_tokens=5), expected)


def test_inputs_that_do_not_belong_together_are_refused(model, processor):
    inputs = dict(processor(*regional([(84, 56, 2), (60, 84, 1)])))
    with pytest.raises(ValueError, match=r"go together; missing \['boxes'\]"):
        model(**{**inputs, "boxes": None})
    with pytest.raises(ValueError, match=r"one of each, not .*1 boxes"):
        model(**{**inputs, "boxes": inputs["boxes"][:1]})
    with pytest.raises(ValueError, match="slots"):
        model(**{**inputs, "boxes": inputs["boxes"][::-1][:1] * 2})
    with pytest.raises(ValueError, match="image slots are left without an image"):
        model(input_ids=inputs["input_ids"])
    with pytest.raises(ValueError, match="give input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="gives back no attentions"):
        model(**inputs, output_hidden_states=True)
    with pytest.raises(ValueError, match="not used by the model"):
        model.generate(**inputs, regions=3)


def test_text_alone_needs_no_image(model, processor):
    messages = [{"role": "user", "content": QUESTION}]
    inputs = processor(messages)
    assert set(inputs) == {"input_ids", "attention_mask"}
    ours = generate(
        model,
        processor,
        [
            processor.encode(
                None, None, [{"role": "user", "content": QUESTION}], for_generation=True
            )
        ],
        GenerationConfig(max_new_tokens=5),
    )
    rows = model.generate(**inputs, max_new_tokens=5)[:, inputs["input_ids"].shape[1] :]
    assert processor.decode(rows[0].tolist()) == ours[0].text


def test_labels_reach_every_trainable_part(model, processor):
    """A loop of someone else's trains the same parts as ours, regions or not."""
    for sample in (regional([(84, 56, 2)], "None"), regional([], "None")):
        model.zero_grad()
        model(**processor(*sample, for_generation=False)).loss.backward()
        idle = model.family.idle_prefixes
        without = {
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is None and not name.startswith(tuple(f"vlm.{i}" for i in idle))
        }
        assert without == set()


def test_embeddings_are_the_bases_and_are_not_resized(model):
    assert model.get_input_embeddings() is model.vlm.get_input_embeddings()
    assert model.get_output_embeddings() is model.vlm.lm_head
    rows = model.family.vocabulary_rows
    assert model.resize_token_embeddings(rows) is model.get_input_embeddings()
    with pytest.raises(SettingError, match="rows stay as they are"):
        model.resize_token_embeddings(rows + 8)


def test_layers_are_recomputed_on_request(model, processor):
    """Gradients stay the same."""
    inputs = processor(*regional([(84, 56, 2)], "None"), for_generation=False)
    model.train()
    model(**inputs).loss.backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert model.is_activation_checkpointing
    model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        if name in plain:
            torch.testing.assert_close(parameter.grad, plain[name], msg=name)
    model.gradient_checkpointing_disable()
    assert not model.is_activation_checkpointing
