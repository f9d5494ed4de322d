import math
import re
from dataclasses import replace

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from fo1_model import grammar
from fo1_model.errors import SettingError
from fo1_model.generation import GenerationConfig, generate, read_answer
from fo1_model.generation.decoding import _penalty
from tests.ties import Said, assert_same_tokens, greedy


@pytest.fixture
def samples(sample):
    """Prompts of very different shapes, so that positions and padding both matter."""
    return [
        sample(84, 56, 3),
        sample(60, 280, 12),
        sample(140, 28, 0, seed=1),
        sample(),
        sample(56, 56, 1, seed=2),
    ]


def greedy_by_recomputing(model, processor, one, num_tokens):
    """Every token from a whole forward pass over all tokens before it, without a cache."""
    ids = one.input_ids.tolist()
    starts = [
        i
        for i, token in enumerate(ids)
        if token == processor.token_ids.image and ids[i - 1] != token
    ]
    said = Said()
    with torch.no_grad():
        embedded = model.embed(processor.collate([one]))
        for _ in range(num_tokens):
            length = len(ids) + len(said.tokens)
            positions = model.family.positions(length, list(zip(starts, one.grids, strict=True)))
            hidden = model.decode(
                embedded, torch.ones(1, length, dtype=torch.int64), positions[:, None]
            )
            said.add(model.logits(hidden[0, -1:])[0])
            latest = torch.tensor([said.tokens[-1:]])
            embedded = torch.cat([embedded, model.embed_ids(latest)], dim=1)
            if said.tokens[-1] in processor.stop_ids:
                break
    return said


def test_cached_batched_decoding_equals_recomputing_alone(model, processor, samples):
    together = greedy(model, processor, samples, GenerationConfig(max_new_tokens=12))
    for found, one in zip(together, samples, strict=True):
        expected = greedy_by_recomputing(model, processor, one, 12)
        differing = set(expected.tokens)
        assert len(differing) > 3, "a model that repeats itself would hide wrong positions"
        assert_same_tokens(found.tokens, expected)


def test_the_repetition_penalty_is_that_of_transformers(model, processor, samples):
    """On the answer's own tokens alone; some answers change with it."""
    penalty, seen = 1.3, {}

    def record(name):
        def hook(tokens, logits):
            seen.setdefault(name, []).append((tokens.clone(), logits.clone()))
            return logits

        return hook

    config = GenerationConfig(max_new_tokens=12)
    plain = generate(model, processor, samples, config, logits_hook=record("plain"))
    other = generate(
        model,
        processor,
        samples,
        replace(config, repetition_penalty=penalty),
        logits_hook=record("penalised"),
    )
    assert [answer.text for answer in plain] != [answer.text for answer in other]
    theirs = RepetitionPenaltyLogitsProcessor(penalty)
    # The first tokens are the same with nothing said before; then one has been.
    for step in (0, 1):
        tokens, logits = seen["plain"][step]
        expected = theirs(tokens, logits.clone()) if step else logits
        assert torch.equal(seen["penalised"][step][0], tokens)
        torch.testing.assert_close(seen["penalised"][step][1], expected)
    changed = seen["plain"][1][1] != seen["penalised"][1][1]
    assert changed.sum(dim=1).tolist() == [1] * len(samples)


def test_the_penalty_of_negative_logits_and_of_tokens_said_twice():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 20, generator=generator)
    tokens = torch.randint(20, (3, 9), generator=generator)
    assert (logits.gather(1, tokens) < 0).any()
    expected = RepetitionPenaltyLogitsProcessor(1.05)(tokens, logits.clone())
    torch.testing.assert_close(_penalty(1.05)(tokens, logits), expected)
    with pytest.raises(SettingError, match=r"repetition_penalty=0 must be above 0"):
        GenerationConfig(repetition_penalty=0)


def test_positions_matter_in_that_comparison(model, processor, samples, monkeypatch):
    """The trap of model.md section 8: text positions after the first token change what is said."""
    one = samples[1]
    right = generate(model, processor, [one], GenerationConfig(max_new_tokens=12))[0].text
    decode, calls = model.decode, []

    def by_token_count(embeddings, mask, positions, cache=None):
        calls.append(None)
        return decode(
            embeddings,
            mask,
            positions if len(calls) == 1 else mask.sum() - 1 + 0 * positions,
            cache,
        )

    monkeypatch.setattr(model, "decode", by_token_count)
    assert generate(model, processor, [one], GenerationConfig(max_new_tokens=12))[0].text != right


def test_the_hook_decides_and_logprobs_are_of_the_unmodified_logits(model, processor, samples):
    script = processor.tokenizer.encode(
        "<ground>red circle</ground><objects><region2><region0><region7></objects><|im_end|>",
        add_special_tokens=False,
    )
    logprobs: list[list[float]] = [[] for _ in samples]

    def say(tokens, logits):
        for row, values in enumerate(logits.log_softmax(dim=-1)):
            logprobs[row].append(float(values[script[tokens.shape[1]]]))
        forced = torch.full_like(logits, -math.inf)
        forced[:, script[tokens.shape[1]]] = 0
        return forced

    answers = generate(model, processor, samples, logits_hook=say)
    first = answers[0]
    assert first.text.endswith("</objects>")
    assert first.finished
    assert first.parsed.phrases == (("red circle", (0, 2)),)  # region 7 does not exist among three
    assert first.parsed.regions == (2, 0)
    assert first.parsed.problem == "unknown regions 7"
    places = [script.index(processor.token_ids.new[index]) for index in (2, 0)]
    assert first.region_logprobs == pytest.approx(
        [logprobs[0][place] for place in places], abs=1e-4
    )
    assert answers[1].parsed.regions == (2, 0, 7)
    assert answers[2].parsed.regions == ()


def test_a_finished_row_is_padded_while_others_go_on(model, processor, samples):
    steps: list[torch.Tensor] = []

    def stop_the_first(tokens, logits):
        steps.append(tokens)
        logits = logits.clone()
        logits[0, processor.stop_ids[0]] = math.inf
        logits[1:, list(processor.stop_ids)] = -math.inf
        return logits

    answers = generate(
        model,
        processor,
        samples[:2],
        GenerationConfig(max_new_tokens=4),
        logits_hook=stop_the_first,
    )
    assert steps[-1][0].tolist() == [processor.stop_ids[0], processor.pad_id, processor.pad_id]
    assert [answer.finished for answer in answers] == [True, False]
    assert answers[0].text == ""


def test_length_limit_is_reported(model, processor, samples):
    assert not generate(model, processor, samples[:1], GenerationConfig(max_new_tokens=2))[
        0
    ].finished


def test_a_finished_row_does_not_speak_on(processor):
    stop = processor.stop_ids[0]
    region = processor.token_ids.new[1]
    answer = read_answer(
        processor, [region, stop, region, processor.token_ids.new[0]], [-1.0, -2.0, -3.0, -4.0], 5
    )
    assert (answer.text, answer.parsed.regions, answer.region_logprobs) == (
        "<region1>",
        (1,),
        (-1.0,),
    )
    assert answer.finished


def test_draws_depend_on_seed_and_sample_not_on_the_batch(model, processor, samples):
    config = GenerationConfig(max_new_tokens=8, temperature=1.0, seed=3)
    together = generate(model, processor, samples, config)
    alone = [generate(model, processor, [one], config)[0] for one in samples]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    other = generate(
        model, processor, samples, GenerationConfig(max_new_tokens=8, temperature=1.0, seed=4)
    )
    assert [answer.text for answer in together] != [answer.text for answer in other]


def test_a_narrow_nucleus_is_greedy(model, processor, samples):
    greedy = generate(model, processor, samples, GenerationConfig(max_new_tokens=6))
    narrow = GenerationConfig(max_new_tokens=6, temperature=0.7, top_p=1e-6)
    assert [a.text for a in generate(model, processor, samples, narrow)] == [a.text for a in greedy]


def test_draws_follow_the_distribution():
    from fo1_model.generation.decoding import _choose

    probabilities = torch.tensor([0.5, 0.1, 0.3, 0.1])
    generators = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    logits = probabilities.log().expand(4000, 4)
    drawn = (
        _choose(logits, GenerationConfig(temperature=1.0), generators).bincount(minlength=4) / 4000
    )
    torch.testing.assert_close(drawn, probabilities, rtol=0, atol=0.03)
    nucleus = _choose(logits, GenerationConfig(temperature=1.0, top_p=0.7), generators).bincount(
        minlength=4
    )
    torch.testing.assert_close(
        nucleus / 4000, torch.tensor([0.625, 0, 0.375, 0]), rtol=0, atol=0.03
    )


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_wrong_settings(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        GenerationConfig(**wrong)


CONSTRAINED = GenerationConfig(max_new_tokens=24, constrained=True)


def test_no_answer_of_a_random_model_is_malformed_under_the_constraint(model, processor, samples):
    """New rows far larger than the base's: the model says little but tags and index tokens."""
    with torch.no_grad():
        model.new_rows.weight.mul_(4)
    broken = 0
    for seed in range(4):
        for constrained in (True, False):
            config = GenerationConfig(
                max_new_tokens=24, temperature=2.0, seed=seed, constrained=constrained
            )
            answers = generate(model, processor, samples, config)
            problems = [answer.parsed.problem for answer in answers]
            if not constrained:
                broken += sum(problem is not None for problem in problems)
                continue
            assert problems == [None] * len(samples)
            assert all(answer.finished for answer in answers)
            for answer, count in zip(answers, (3, 12, 0, 0, 1), strict=True):
                assert all(region < count for region in grammar.mentioned_regions(answer.text))
                for objects in re.findall("<objects>(.*?)</objects>", answer.text):
                    named = grammar.mentioned_regions(objects)
                    assert len(named) == len(set(named))
    assert broken > 4, "the model would have broken the language by itself"


def test_greedy_answers_are_held_to_the_language_as_well(model, processor, samples):
    answers = generate(model, processor, samples, CONSTRAINED)
    assert all(answer.parsed.problem is None and answer.finished for answer in answers)


def scripted(processor, answers):
    """A hook under which row i wants to say ``answers[i]``, tokens of other answers next best."""
    scripts = [
        processor.tokenizer.encode(text + "<|im_end|>", add_special_tokens=False)
        for text in answers
    ]

    def want(tokens, logits):
        wanted = logits.clone()
        for row, script in zip(wanted, scripts, strict=True):
            if tokens.shape[1] < len(script):
                row[script[tokens.shape[1]]] = 1e4
        return wanted

    return want


def test_the_constraint_changes_nothing_that_is_allowed(model, processor, samples):
    clean = [
        (
            "<ground>red circle</ground><objects><region2><region0></objects>\n"
            "<region1> is it, 1 < 2 > 0."
        ),
        "There are 3.",
        "None",
        "",
        "<ground>a</ground><objects></objects>",
    ]
    for config in (
        GenerationConfig(max_new_tokens=80),
        GenerationConfig(max_new_tokens=80, temperature=0.5, top_p=0.9),
    ):
        free, held = (
            generate(
                model,
                processor,
                samples,
                GenerationConfig(**{**vars(config), "constrained": constrained}),
                logits_hook=scripted(processor, clean),
            )
            for constrained in (False, True)
        )
        assert held == free
        assert [answer.text for answer in held] == clean


def test_what_breaks_the_language_is_left_out(model, processor, samples):
    wanted = ["<ground>red</ground><objects><region2><region7><region2></objects>", "", "", "", ""]
    held = generate(
        model, processor, samples, CONSTRAINED, logits_hook=scripted(processor, wanted)
    )[0]
    assert held.text.startswith("<ground>red</ground><objects><region2>")
    assert held.parsed.problem is None


def test_phrases_are_held_to_the_names(model, processor, samples):
    names = [("red circle", "blue square"), None, ("café",), ("a",), None]
    wanted = ["<ground>green", "<ground>green", "<ground>green", "<ground>green", "None"]
    answers = generate(
        model, processor, samples, CONSTRAINED, names=names, logits_hook=scripted(processor, wanted)
    )
    said = [answer.parsed.phrases[0][0] if answer.parsed.phrases else None for answer in answers]
    assert said[0] in names[0]
    assert said[1].startswith("green")
    assert said[2:4] == ["café", "a"]
    assert all(answer.parsed.problem is None for answer in answers)


def test_names_without_the_constraint_are_refused_before_any_compute(processor, samples):
    for config, names, word in (
        (GenerationConfig(), [None] * 5, "constrained"),
        (CONSTRAINED, [None], "samples"),
        (CONSTRAINED, [None, None, None, None, ("<region1>",)], "names"),
    ):
        with pytest.raises(SettingError, match=word):
            generate(torch.nn.Linear(1, 1), processor, samples, config, names=names)


def test_constrained_answers_do_not_depend_on_the_batch(model, processor, samples):
    names = [("red circle",), None, None, ("café", "a"), None]
    config = GenerationConfig(max_new_tokens=10, constrained=True)
    together = greedy(model, processor, samples, config, names=names)
    for found, one, allowed in zip(together, samples, names, strict=True):
        [expected] = greedy(model, processor, [one], config, names=[allowed])
        assert_same_tokens(found.tokens, expected)
    config = GenerationConfig(max_new_tokens=10, temperature=1.5, constrained=True)
    together = generate(model, processor, samples, config, names=names)
    alone = [
        generate(model, processor, [one], config, names=[allowed])[0]
        for one, allowed in zip(samples, names, strict=True)
    ]
    assert [answer.text for answer in together] == [answer.text for answer in alone]


def test_tokens_without_probability_are_never_drawn(monkeypatch):
    from fo1_model.generation.decoding import _choose

    # The largest number below one, over running sums that rounding leaves a little below the total.
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: torch.tensor(1 - 2**-24))
    logits = 3 * torch.randn(500, 1100, generator=torch.Generator().manual_seed(0))
    logits[:, 1000:] = -math.inf
    chosen = _choose(logits, GenerationConfig(temperature=1.0), [torch.Generator()] * 500)
    assert (chosen < 1000).all()
