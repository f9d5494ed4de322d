"""Named mixes: which share of the training samples comes from which source.

A mix is data: ``{"dataset/task": weight}``. Weights are relative; the sample plan (pipelines/mixing.py) turns
them into an exact, deterministic order. Variations are small functions over the dictionary.
"""

from collections.abc import Callable, Mapping

Mix = dict[str, float]
"""Source ("dataset/task") -> relative weight, greater than zero."""

STAGE1: Mix = {
    "drawn_train/region_name": 0.35,
    "drawn_train/detection": 0.40,
    "drawn_train/rejection": 0.15,
    "drawn_train/counting": 0.05,
    "drawn_refs_train/referring": 0.05,
}
"""Region-language alignment on the drawn world: naming regions and looking names up (paper 3.3, stage 1)."""

STAGE2: Mix = {
    "drawn_train/region_name": 0.15,
    "drawn_train/detection": 0.35,
    "drawn_train/rejection": 0.30,
    "drawn_train/counting": 0.10,
    "drawn_refs_train/referring": 0.10,
}
"""Perception fine-tuning on the drawn world. The paper makes a fifth of the detection data rejections (4.1);
the tiny model, which sees few samples, gets more."""

COCO: Mix = {
    "coco/detection": 0.5,
    "coco/rejection": 0.2,
    "coco/counting": 0.2,
    "coco/region_name": 0.1,
}
"""Any folder in COCO layout."""

MIXES: dict[str, Mix] = {"drawn_stage1": STAGE1, "drawn_stage2": STAGE2, "coco": COCO}


def without(mix: Mapping[str, float], name: str) -> Mix:
    """The mix less a dataset, a task or one source; raises ValueError when nothing matches."""
    kept = {source: weight for source, weight in mix.items() if not _matches(source, name)}
    if len(kept) == len(mix):
        raise ValueError(f"mix: {name!r} names no source of it; its sources are {', '.join(sorted(mix))}")
    return kept


def scaled(mix: Mapping[str, float], name: str, factor: float) -> Mix:
    """The mix with the weight of a dataset, a task or one source multiplied by ``factor`` (> 0)."""
    if not any(_matches(source, name) for source in mix):
        raise ValueError(f"mix: {name!r} names no source of it; its sources are {', '.join(sorted(mix))}")
    return {source: weight * (factor if _matches(source, name) else 1.0) for source, weight in mix.items()}


def only(mix: Mapping[str, float], name: str) -> Mix:
    """The part of the mix that a dataset, a task or one source makes up."""
    kept = {source: weight for source, weight in mix.items() if _matches(source, name)}
    if not kept:
        raise ValueError(f"mix: {name!r} names no source of it; its sources are {', '.join(sorted(mix))}")
    return kept


def parse_mix(text: str) -> Mix:
    """A mix from the command line: a name, a name with changes, or sources with weights.

    ``drawn_stage2`` | ``drawn_stage2-rejection`` (without) | ``drawn_stage2*counting=2`` (scaled) |
    ``coco/detection=3,coco/rejection=1``. Raises ValueError naming the known mixes.
    """
    if "/" in text.split("=")[0]:
        return check_mix({source: _weight(weight) for source, weight in _pairs(text)})
    for mark, change in _CHANGES.items():
        if mark in text:
            name, argument = text.split(mark, 1)
            return check_mix(change(parse_mix(name), argument))
    if text not in MIXES:
        raise ValueError(
            f"mix: unknown mix {text!r}; known: {', '.join(sorted(MIXES))}, or source=weight,..."
        )
    return dict(MIXES[text])


def check_mix(mix: Mix) -> Mix:
    """The mix itself; raises ValueError naming the source whose weight or name cannot be."""
    for source, weight in mix.items():
        if source.count("/") != 1:
            raise ValueError(f"mix: source {source!r} is not of the form dataset/task")
        if not 0 < weight < float("inf"):
            raise ValueError(f"mix: weight of {source} is {weight}; give a positive, finite number")
    if not mix:
        raise ValueError("mix: it names no source; give at least one dataset/task")
    return mix


def _matches(source: str, name: str) -> bool:
    return name in (source, *source.split("/"))


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = [item.partition("=")[::2] for item in text.split(",")]
    return [(source.strip(), weight or "1") for source, weight in pairs]


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"mix: weight {text!r} is not a number") from None


def _scale(mix: Mix, argument: str) -> Mix:
    name, _, factor = argument.partition("=")
    return scaled(mix, name, _weight(factor or "1"))


_CHANGES: dict[str, Callable[[Mix, str], Mix]] = {"-": without, "*": _scale}
