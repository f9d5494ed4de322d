"""What a mix amounts to before anything is trained: examples, repeats, tokens of sources. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.loading.sample_plan import Mix, SamplePlan, capped_weights
from pipelines.train_config import TrainConfig

CHARS_PER_TOKEN = 4.0
"""Characters of English text a token, roughly, with the tokenizers of the supported models."""
PIXELS_PER_TOKEN = 28 * 28
"""Pixels of one image token of Qwen2.5-VL (14-px patches, merged 2 x 2)."""
NOMINAL_TOKENS = 640 * 480 // PIXELS_PER_TOKEN + 2 * 60
"""Tokens of an example of which nothing is known yet, without its text.

A VGA image, and 60 regions of two tokens.
"""
NOMINAL_TEXT_TOKENS = {
    "grounding": 90,
    "reasoning": 350,
    "caption": 250,
    "instruction": 300,
    "ocr": 40,
}
"""Tokens of the text of such an example by task; 60 for the others. ours"""


def nominal_tokens(task: str) -> float:
    """Return the tokens of an example of a task of which nothing is known yet."""
    return float(NOMINAL_TOKENS + NOMINAL_TEXT_TOKENS.get(task, 60))


@dataclass(frozen=True, kw_only=True)
class Amount:
    """What a run takes from one source."""

    source: str
    """Name of the source, ``dataset/task``."""
    share: float
    """Share of the run's examples, after the cap on repeats."""
    available: int
    """Examples that there are; 0 where unknown."""
    drawn: int
    """Examples that the run takes."""
    tokens_each: float
    """Tokens of one example."""

    @property
    def epochs(self) -> float | None:
        """How often each example is seen; None when it is not known how many there are."""
        return self.drawn / self.available if self.available else None

    @property
    def tokens(self) -> float:
        """Tokens that the run takes."""
        return self.drawn * self.tokens_each


def amounts(
    mix: Mix, config: TrainConfig, available: Mapping[str, int], tokens_each: Mapping[str, float]
) -> list[Amount]:
    """Return what a run of `config` takes from each source, exactly as its sample plan will.

    Args:
        mix: Weight of each source.
        config: Of the run.
        available: Examples of each source, 0 where unknown.
        tokens_each: Tokens of an example of each source.

    Raises:
        SettingError: The sources are too small for ``config.max_repeats``; the cap waits until all
            are known.
    """
    num_positions = config.steps * config.batch_size
    if config.max_repeats is not None and all(available[source] for source in mix):
        mix = capped_weights(
            mix, available, num_positions=num_positions, max_repeats=config.max_repeats
        )
    # Counts depend on the weights alone, so one shard a source does; a plan takes no empty one.
    plan = SamplePlan(
        {source: [max(1, available[source])] for source in mix}, mix, seed=config.seed
    )
    drawn = plan.counts(num_positions)
    return [
        Amount(
            source=source,
            share=float(plan.shares[source]),
            available=available[source],
            drawn=drawn[source],
            tokens_each=tokens_each[source],
        )
        for source in mix
    ]


def tokens_of(ledger: Mapping[str, Any], task: str) -> float:
    """Return the mean tokens of an example of a task, estimated from finished shards.

    Args:
        ledger: Of the shards' manifest.
        task: One of the shards' tasks.
    """
    examples = ledger.get("examples", {}).get(task, 0)
    if not examples:
        return nominal_tokens(task)
    text = ledger["text_chars"][task] / CHARS_PER_TOKEN
    return (
        text + ledger["region_tags"][task] + ledger["pixels"][task] / PIXELS_PER_TOKEN
    ) / examples


def budget_table(found: Sequence[Amount], *, nominal: Mapping[str, bool]) -> str:
    """Lay the amounts out as text, a line a source, with their sum.

    Args:
        found: Of each source.
        nominal: Whether what is said of a source comes from published counts rather than from what
            was built; marked with ~.
    """
    header = ["source", "share", "examples", "drawn", "epochs", "tokens each", "tokens"]
    rows = []
    for item in found:
        mark = "~" if nominal[item.source] else ""
        rows.append(
            [
                item.source,
                f"{100 * item.share:.2f} %",
                f"{mark}{short(item.available)}" if item.available else "?",
                short(item.drawn),
                "?" if item.epochs is None else f"{mark}{item.epochs:.2f}",
                f"{mark}{item.tokens_each:.0f}",
                f"{mark}{short(item.tokens)}",
            ]
        )
    rejected = sum(item.share for item in found if item.source.endswith("/rejection"))
    asked = rejected + sum(item.share for item in found if item.source.endswith("/detection"))
    rows.append(
        [
            "all",
            "100 %",
            "",
            short(sum(i.drawn for i in found)),
            "",
            "",
            short(sum(i.tokens for i in found)),
        ]
    )
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in [header, *rows]
    ]
    if asked:
        lines.append(
            f"rejection: {100 * rejected / asked:.1f} % of detection and rejection together"
        )
    return "\n".join(lines)


def short(number: float) -> str:
    """Return 12345 as 12.3k."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= limit:
            scale = limit if unit != "k" else 1e3
            return f"{number / scale:.1f}{unit}"
    return f"{number:.0f}"
