"""New vocabulary rows beside a frozen base matrix.

The region language adds about a hundred tokens. Their rows are a parameter of their own, so that
"only the new rows train" holds under weight decay, momentum and sharded optimizers: the base
matrix simply does not require a gradient. An id that is new takes its row here even where the base
matrix happens to have a spare row for it, as Qwen's does.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NewTokenRows(nn.Module):
    """K rows of a vocabulary: input embeddings, output rows, or both when the base is tied.

    Args:
        ids: Token id of each row.
        base_rows: Number of rows of the base matrix.
        hidden_size: Width of a row.

    Raises:
        ValueError: When an id appears twice or is negative.
    """

    ids: Tensor
    row_of_id: Tensor

    def __init__(self, ids: Sequence[int], *, base_rows: int, hidden_size: int) -> None:
        super().__init__()
        if len(set(ids)) != len(ids) or min(ids) < 0:
            raise ValueError(f"new token ids must be distinct and not negative, got {list(ids)}")
        self.weight = nn.Parameter(torch.zeros(len(ids), hidden_size))
        self.base_rows = base_rows
        self.num_rows = max(base_rows, max(ids) + 1)
        """Rows of the whole vocabulary."""
        # Not stored: they follow from the config, and a stored copy could contradict it.
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        row_of_id = torch.full((self.num_rows,), -1)
        row_of_id[self.ids] = torch.arange(len(ids))
        self.register_buffer("row_of_id", row_of_id, persistent=False)

    def forward(
        self, base: Tensor, *, ids: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """Return the base's part with the new rows' in place; give either ``ids`` or ``hidden``.

        Args:
            base: With ids, their base embedding float[..., D] (see ``base_ids``); with hidden
                states, the base logits float[..., base_rows].
            ids: int64[...].
            hidden: float[..., D].

        Returns:
            Embeddings float[..., D], or logits float[..., num_rows].
        """
        if ids is not None and hidden is None:
            rows = self.row_of_id[ids]
            # Old ids look up row 0 and are replaced: the graph is the same for every batch.
            new = F.embedding(rows.clamp(min=0), self.weight).to(base.dtype)
            return torch.where((rows >= 0).unsqueeze(-1), new, base)
        if hidden is None or ids is not None:
            raise ValueError("give either ids or hidden")
        new = F.linear(hidden, self.weight.to(hidden.dtype)).to(base.dtype)
        # Ids between the base's rows and the new ones exist nowhere, so they get no probability.
        padded = F.pad(base, (0, self.num_rows - self.base_rows), value=float("-inf"))
        return padded.index_copy(-1, self.ids, new)

    def base_ids(self, ids: Tensor) -> Tensor:
        """Return ``ids`` with new ones replaced by 0, so that any base matrix can look them up."""
        return torch.where(self.row_of_id[ids] >= 0, torch.zeros_like(ids), ids)

    @torch.no_grad()
    def initialise(
        self,
        base_weight: Tensor,
        generator: torch.Generator,
        *,
        spread: float = 0.1,
        like: Mapping[int, int] | None = None,
    ) -> None:
        """Start at the mean of the used base rows plus noise, or at another token's row.

        Rows from the first new id on are spare ones that no token ever trained, so they are left
        out of the mean.

        Args:
            base_weight: float[base_rows, D].
            generator: Source of the noise.
            spread: Size of the noise, in standard deviations of a column.
            like: New id -> base id whose row it copies.
        """
        # Drawn on the CPU, so that a seed gives the same rows on every device.
        used = base_weight[: int(self.ids.min())].float().cpu()
        noise = torch.randn(self.weight.shape, generator=generator) * used.std(dim=0) * spread
        self.weight.copy_(used.mean(dim=0) + noise)
        for new_id, base_id in (like or {}).items():
            self.weight[self.row_of_id[new_id]] = base_weight[base_id].to(self.weight)

    def merged(self, base_weight: Tensor) -> Tensor:
        """Return one matrix float[num_rows, D] with the new rows in their places, for export."""
        matrix = base_weight.new_zeros(self.num_rows, base_weight.shape[1])
        matrix[: base_weight.shape[0]] = base_weight
        matrix[self.ids] = self.weight.to(matrix.dtype)
        return matrix
