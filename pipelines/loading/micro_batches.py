"""How a rank's examples of a step are cut into forward passes: by number, or by tokens."""

from __future__ import annotations

from collections.abc import Sequence


def num_micro_batches(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Return the forward passes of each rank in a step, of at most `micro_batch_size` examples."""
    largest_rank = -(-batch_size // world_size)
    return -(-largest_rank // micro_batch_size)


def split(count: int, pieces: int) -> list[range]:
    """Cut ``range(count)`` into near-equal pieces, empty ones included."""
    return [range(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]


def group_by_tokens(
    lengths: Sequence[int], *, max_examples: int, max_tokens: int, packed: bool = False
) -> list[list[int]]:
    """Group examples of like length so that no group has over `max_tokens` tokens.

    Args:
        lengths: Tokens of each example.
        max_examples: Most examples in a group.
        max_tokens: Most tokens in a group. An example that is longer is a group of its own, for it
            cannot be cut.
        packed: Whether a group has the sum of its examples' tokens; else each is padded to the
            longest.

    Returns:
        The groups as indices into `lengths`, longest examples first, each in the given order: a
        function of the arguments alone.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        last = groups[-1] if groups else []
        with_it = [lengths[i] for i in [*last, index]]
        tokens = sum(with_it) if packed else len(with_it) * with_it[0]
        if last and len(last) < max_examples and tokens <= max_tokens:
            last.append(index)
        else:
            groups.append([index])
    return [sorted(group) for group in groups]
