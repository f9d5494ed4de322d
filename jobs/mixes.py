"""Named mixes: which share of the training samples comes from which source.

A mix is data: ``{"dataset/task": weight}``. Weights are relative; the sample plan (pipelines/loading/sample_plan.py) turns
them into an exact, deterministic order. Variations are small functions over the dictionary.
"""

from collections.abc import Callable, Mapping

from dataset_builders import DATASETS

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
    "drawn_train/region_name": 0.14,
    "drawn_train/detection": 0.32,
    "drawn_train/rejection": 0.35,
    "drawn_train/counting": 0.10,
    "drawn_refs_train/referring": 0.09,
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

REJECTION_SHARE = 0.2
"""Of the detection data (paper 4.1)."""


def _shared(weight: float, *sources: str, **weighted: float) -> Mix:
    """`weight` divided among sources: evenly, or by the numbers of ``dataset__task=number``."""
    parts = dict.fromkeys(sources, 1.0) | {
        name.replace("__", "/"): part for name, part in weighted.items()
    }
    return {source: weight * part / sum(parts.values()) for source, part in parts.items()}


def with_rejection(mix: Mapping[str, float], share: float = REJECTION_SHARE) -> Mix:
    """The mix with `share` of every ``dataset/detection`` weight given to ``dataset/rejection``."""
    changed: Mix = {}
    for source, weight in mix.items():
        dataset, task = source.split("/")
        given = share * weight if task == "detection" else 0.0
        for name, part in ((source, weight - given), (f"{dataset}/rejection", given)):
            if part:
                changed[name] = changed.get(name, 0.0) + part
    return changed


PAPER_STAGE1: Mix = with_rejection(
    _shared(0.50, coco_train__detection=2, objects365__detection=3, v3det__detection=2)
    | _shared(0.25, "goldg_mixed/grounding", "goldg_flickr/grounding")
    | _shared(0.25, "rexverse/region_caption")
)
"""Table 10, stage 1: object detection, grounding, region caption. The paper names the data sets and gives no
weights; these are ours."""

PAPER_STAGE2: Mix = with_rejection(
    _shared(
        0.28,
        coco_train__detection=3,
        objects365__detection=3,
        v3det__detection=2,
        lvis_train__detection=2,
        vaw__detection=1,
        visdrone__detection=1,
        coco_train__visual_prompt=1,
        lvis_train__visual_prompt=1,
    )
    | _shared(
        0.16,
        refcoco__referring=2,
        refcocop__referring=2,
        refcocog__referring=2,
        grefcoco__referring=1,
        grefcoco__rejection=0.5,
        c_refcoco__referring=0.5,
        c_refcoco__rejection=0.5,
        finecops_ref__referring=0.7,
        finecops_ref__rejection=0.3,
    )
    | _shared(0.06, "grit/grounding")
    | _shared(
        0.14,
        rexverse__region_caption=2,
        paco_lvis__region_caption=1,
        visual_genome__region_caption=2,
        osprey__region_caption=1,
        sharegpt4v__caption=1,
    )
    | _shared(
        0.10,
        visual_cot__reasoning=2,
        humanref_cot__reasoning=1.5,
        humanref_cot_rejection__rejection=0.5,
    )
    | _shared(
        0.08,
        coco_train__counting=2,
        lvis_train__counting=1,
        crowdhuman__counting=1,
        tallyqa__counting=2,
        humanref_cot__counting=1,
    )
    | _shared(
        0.08,
        osprey__region_qa=1,
        osprey__rejection=0.25,
        vcr__region_qa=1,
        mdvp__region_qa=1,
        doclaynet__region_qa=1,
    )
    | _shared(
        0.04,
        mlt2019__ocr=1,
        icdar2015__ocr=0.5,
        curved_syntext1__ocr=1,
        curved_syntext2__ocr=1,
    )
    | _shared(
        0.06, llava_mix665k__instruction=2, cauldron__instruction=2, cogvlm_sft__instruction=1
    )
)
"""Table 10, stage 2. Weights are ours. OmChat-SFT was never released: LLaVA, The Cauldron and CogVLM stand
in."""

PAPER_OPN: Mix = _shared(1.0, coco_train__detection=2, objects365__detection=3, v3det__detection=2)
"""The detection data of stage 1. What the authors trained OPN on is not published; ours."""

MIXES: dict[str, Mix] = {
    "drawn_stage1": STAGE1,
    "drawn_stage2": STAGE2,
    "coco": COCO,
    "opn": PAPER_OPN,
    "stage1": PAPER_STAGE1,
    "stage2": PAPER_STAGE2,
}


def without(mix: Mapping[str, float], name: str) -> Mix:
    """The mix less a dataset, a task or one source; raises ValueError when nothing matches."""
    kept = {source: weight for source, weight in mix.items() if not _matches(source, name)}
    if len(kept) == len(mix):
        raise ValueError(
            f"mix: {name!r} names no source of it; its sources are {', '.join(sorted(mix))}"
        )
    return kept


def scaled(mix: Mapping[str, float], name: str, factor: float) -> Mix:
    """The mix with the weight of a dataset, a task or one source multiplied by ``factor`` (> 0)."""
    if not any(_matches(source, name) for source in mix):
        raise ValueError(
            f"mix: {name!r} names no source of it; its sources are {', '.join(sorted(mix))}"
        )
    return {
        source: weight * (factor if _matches(source, name) else 1.0)
        for source, weight in mix.items()
    }


def only(mix: Mapping[str, float], name: str) -> Mix:
    """The part of the mix that a dataset, a task or one source makes up."""
    kept = {source: weight for source, weight in mix.items() if _matches(source, name)}
    if not kept:
        raise ValueError(
            f"mix: {name!r} names no source of it; its sources are {', '.join(sorted(mix))}"
        )
    return kept


def datasets_of(mix: Mix) -> list[str]:
    """Names of the datasets in a mix, each once, in its order."""
    return list(dict.fromkeys(source.split("/")[0] for source in mix))


def parse_mix(text: str) -> Mix:
    """A mix from the command line: a name, a name with changes, sources with weights, or one dataset.

    ``drawn_stage2`` | ``drawn_stage2-rejection`` (without) | ``drawn_stage2*counting=2`` (scaled) |
    ``stage2:ocr`` (only) | ``coco/detection=3,coco/rejection=1`` | ``icdar2015`` (all its tasks alike).
    Raises ValueError naming the known mixes.
    """
    if text in DATASETS and text not in MIXES:
        return dict.fromkeys((f"{text}/{task}" for task in DATASETS[text].tasks), 1.0)
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


_CHANGES: dict[str, Callable[[Mix, str], Mix]] = {"-": without, "*": _scale, ":": only}
