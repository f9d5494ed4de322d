"""Named benchmarks: which dataset is asked what, and the paper's metrics for comparison."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Questions over one dataset, answered from its proposals in score order, nothing injected."""

    dataset: str
    """Name in ``dataset_builders.DATASETS``."""
    tasks: tuple[str, ...]
    """Tasks of its shards that are asked."""
    coco_ap: bool = False
    """Every image is asked for all names at once: COCO AP under the standard protocol."""
    max_new_tokens: int = 256
    """Longest answer, tokens."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """Metric -> value in the paper, as a share of one."""


DRAWN_TASKS = ("detection", "rejection", "counting", "region_name")
"""Tasks that a builder of boxes makes, and that are asked one name or region at a time."""

BENCHMARKS: dict[str, Benchmark] = {
    "drawn_val": Benchmark(dataset="drawn_val", tasks=DRAWN_TASKS),
    "drawn_refs_val": Benchmark(dataset="drawn_refs_val", tasks=("referring",)),
    "drawn_val_all": Benchmark(dataset="drawn_val_all", tasks=("detection",), coco_ap=True),
    "coco": Benchmark(dataset="coco", tasks=DRAWN_TASKS),
    "coco_all": Benchmark(
        dataset="coco_all", tasks=("detection",), coco_ap=True, max_new_tokens=1024
    ),
    "coco_val": Benchmark(
        dataset="coco_val_all",
        tasks=("detection",),
        coco_ap=True,
        max_new_tokens=4096,
        paper={"ap": 0.444},
    ),
}
"""Benchmarks by name."""
