"""Batched decoding of answers.

One forward pass over the left-padded prompts fills the cache, then tokens follow one by one.
Positions go on from the largest position of each prompt, on all axes: images make a prompt's
positions shorter than its tokens, and decoding by token count would silently say something else
from the second token on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fo1_model import grammar
from fo1_model.batch import Encoded
from fo1_model.config import ADDED
from fo1_model.errors import SettingError
from fo1_model.generation.answer_tokens import answer_vocabulary
from fo1_model.generation.constraint import GrammarConstraint
from fo1_model.model import FO1Model
from fo1_model.processing import Processor
from fo1_model.seeds import seed_of

LogitsHook = Callable[[Tensor, Tensor], Tensor]
"""Function (tokens so far int64[B, T], logits float32[B, V]) -> logits, called before every
choice."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How answers are decoded."""

    max_new_tokens: int = 512
    """Longest answer, tokens (release: 4096)."""
    temperature: float = 0.0
    """Temperature of the draws: 0 is greedy (release); above, tokens are drawn from the softmax
    of logits / temperature."""
    top_p: float = 1.0
    """Total probability of the smallest set of tokens that is drawn from."""
    seed: int = 0
    """Seed of the draws; each sample's draws depend on it and the sample's id, not on its batch."""
    constrained: bool = False
    """Whether only answers are given that the grammar reads cleanly and that end within
    ``max_new_tokens`` (ours)."""
    repetition_penalty: float = field(default=1.0, metadata=ADDED)
    """What logits of tokens that the answer has said already are divided by, negative ones
    multiplied; 1 for nothing (arXiv 1909.05858). The prompt's tokens do not count, as in the
    release, which decodes from embeddings. ``release.generation_settings`` reads a checkpoint's."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise SettingError(
                f"GenerationConfig.max_new_tokens={self.max_new_tokens} must be at least 1"
            )
        if self.temperature < 0:
            raise SettingError(
                f"GenerationConfig.temperature={self.temperature} must not be negative"
            )
        if not 0 < self.top_p <= 1:
            raise SettingError(f"GenerationConfig.top_p={self.top_p} must be in (0, 1]")
        if not self.repetition_penalty > 0:
            raise SettingError(
                f"GenerationConfig.repetition_penalty={self.repetition_penalty} must be above 0; "
                "1 leaves it out"
            )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model said about one sample."""

    text: str
    """The answer as written, region tokens included, without the end of turn."""
    parsed: grammar.ParsedAnswer
    """The answer as the grammar reads it."""
    region_logprobs: tuple[float, ...]
    """Log-probability of each of ``parsed.regions`` where it was first said, under the
    unmodified logits."""
    finished: bool
    """Whether a stop token ended the answer, not ``max_new_tokens``; always so when it was
    constrained."""


@torch.inference_mode()
def generate(
    model: FO1Model,
    processor: Processor,
    samples: Sequence[Encoded],
    config: GenerationConfig | None = None,
    *,
    names: Sequence[Sequence[str] | None] | None = None,
    logits_hook: LogitsHook | None = None,
) -> list[Answer]:
    """Return answers to samples, in order, as one batch.

    The model should be in eval mode. Answers do not depend on what else is in the batch beyond
    rounding.

    Args:
        model: The model, on any device.
        processor: Its processor.
        samples: Encoded ``for_generation``.
        config: How to decode; greedy by default.
        names: With ``config.constrained``, per sample the only phrases that it may ground; None for
            any.
        logits_hook: Changes the logits before every choice.

    Raises:
        SettingError: For names without the constraint, of another number than the samples, or that
            are no phrases.
    """
    config = config or GenerationConfig()
    num_regions = [sum(len(boxes) for boxes in sample.boxes) for sample in samples]
    # Log-probabilities are taken before the hooks: what the model thinks, not what it may say.
    hooks = [] if config.repetition_penalty == 1 else [_penalty(config.repetition_penalty)]
    hooks += [logits_hook] if logits_hook else []
    hooks += _constraint(processor, config, num_regions, names)
    device = model.device
    batch = processor.collate(samples, pad="left").to(device)
    stop = torch.tensor(processor.stop_ids, device=device)
    generators = [_generator(config.seed, sample.sample_id) for sample in samples]
    cache = model.family.new_cache()
    mask = batch.attention_mask
    hidden = model.decode(model.embed(batch), mask, batch.positions, cache)
    position = batch.positions.amax(dim=(0, 2)) + 1
    tokens = torch.zeros((len(samples), 0), dtype=torch.int64, device=device)
    logprobs = torch.zeros((len(samples), 0), device=device)
    done = torch.zeros(len(samples), dtype=torch.bool, device=device)
    for step in range(config.max_new_tokens):
        logits = model.logits(hidden[:, -1])
        changed = logits
        for hook in hooks:
            changed = hook(tokens, changed)
        chosen = _choose(changed, config, generators)
        # A finished row goes on with padding until the last one is done.
        chosen = torch.where(done, processor.pad_id, chosen)
        logprob = logits.gather(1, chosen[:, None]) - logits.logsumexp(dim=1, keepdim=True)
        tokens, logprobs = (
            torch.cat([tokens, chosen[:, None]], dim=1),
            torch.cat([logprobs, logprob], dim=1),
        )
        done |= torch.isin(chosen, stop)
        if step + 1 == config.max_new_tokens or bool(done.all()):
            break
        mask = torch.cat([mask, mask.new_ones(len(samples), 1)], dim=1)
        positions = (position + step).expand(batch.positions.shape[0], -1).unsqueeze(-1)
        hidden = model.decode(model.embed_ids(chosen[:, None]), mask, positions, cache)
    return [
        read_answer(processor, row, row_logprobs, count)
        for row, row_logprobs, count in zip(
            tokens.tolist(), logprobs.tolist(), num_regions, strict=True
        )
    ]


def read_answer(
    processor: Processor, tokens: Sequence[int], logprobs: Sequence[float], num_regions: int
) -> Answer:
    """Return the answer that tokens spell; what follows the first stop token is not looked at.

    Args:
        processor: The model's processor.
        tokens: Ids in the order they were chosen.
        logprobs: Log-probability of each token.
        num_regions: How many regions the sample has.
    """
    text = processor.decode(tokens)
    parsed = grammar.parse(text, num_regions)
    first_said: dict[int, float] = {}
    region_of_id = {
        token: index
        for index, token in enumerate(processor.token_ids.new[: processor.num_region_tokens])
    }
    finished = False
    for token, logprob in zip(tokens, logprobs, strict=True):
        if token in processor.stop_ids:
            finished = True
            break
        if token in region_of_id:
            first_said.setdefault(region_of_id[token], logprob)
    # A region spelled by other tokens than its own has no single log-probability.
    region_logprobs = tuple(first_said.get(index, float("-inf")) for index in parsed.regions)
    return Answer(text=text, parsed=parsed, region_logprobs=region_logprobs, finished=finished)


def _constraint(
    processor: Processor,
    config: GenerationConfig,
    num_regions: Sequence[int],
    names: Sequence[Sequence[str] | None] | None,
) -> list[LogitsHook]:
    """Return no hook or one; it comes last, so that no other hook can break an answer."""
    if names is not None and not config.constrained:
        raise SettingError(
            "names need GenerationConfig.constrained=True; without it nothing holds answers to them"
        )
    if names is not None and len(names) != len(num_regions):
        raise SettingError(
            f"{len(names)} lists of names for {len(num_regions)} samples; give one or None a sample"
        )
    if not config.constrained:
        return []
    vocabulary = answer_vocabulary(processor)
    limit = config.max_new_tokens
    return [
        GrammarConstraint(vocabulary, num_regions=num_regions, max_new_tokens=limit, names=names)
    ]


def _penalty(factor: float) -> LogitsHook:
    """Return the hook that makes tokens said before less likely."""

    def penalise(tokens: Tensor, logits: Tensor) -> Tensor:
        said = logits.gather(1, tokens)
        return logits.scatter(1, tokens, torch.where(said < 0, said * factor, said / factor))

    return penalise


def _generator(seed: int, sample_id: str) -> torch.Generator:
    """Return the generator of one sample's draws."""
    # One name, so that the draws are those of earlier versions; torch takes 63 bits.
    return torch.Generator().manual_seed(seed_of(f"{seed}/{sample_id}") >> 1)


def _choose(
    logits: Tensor, config: GenerationConfig, generators: Sequence[torch.Generator]
) -> Tensor:
    """Return the chosen tokens int64[B] of logits float32[B, V]."""
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities, order = (
        (logits / config.temperature).softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    )
    cumulative = probabilities.cumsum(dim=-1)
    # A sum of 0.9999 must not let in what has no probability at all.
    kept = (cumulative - probabilities < config.top_p) & (probabilities > 0)
    totals = (probabilities * kept).sum(dim=-1, keepdim=True)
    draws = torch.stack([torch.rand((), generator=generator) for generator in generators]).to(
        logits
    )
    rank = (cumulative < draws[:, None] * totals).sum(dim=-1, keepdim=True)
    last = kept.sum(dim=-1, keepdim=True) - 1
    return order.gather(1, torch.minimum(rank, last)).squeeze(1)
