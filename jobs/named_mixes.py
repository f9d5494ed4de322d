"""Named mixes: which share of the training samples comes from which source.

A mix is data: ``{"dataset/task": weight}``. Weights are relative; the sample plan
(`pipelines.loading.sample_plan`) turns them into an exact, deterministic order. Mixes that are
written on the command line, and variations of these, are in `jobs.mixes`.
"""

from collections.abc import Mapping

Mix = dict[str, float]
"""Source ("dataset/task") -> relative weight, greater than zero."""

STAGE1: Mix = {
    "drawn_train/region_name": 0.35,
    "drawn_train/detection": 0.40,
    "drawn_train/rejection": 0.15,
    "drawn_train/counting": 0.05,
    "drawn_refs_train/referring": 0.05,
}
"""Region-language alignment on the drawn world: naming regions, looking names up (paper 3.3)."""

STAGE2: Mix = {
    "drawn_train/region_name": 0.14,
    "drawn_train/detection": 0.32,
    "drawn_train/rejection": 0.35,
    "drawn_train/counting": 0.10,
    "drawn_refs_train/referring": 0.09,
}
"""Perception fine-tuning on the drawn world.

The paper makes a fifth of the detection data rejections (4.1); the tiny model, which sees few
samples, gets more.
"""

COCO: Mix = {
    "coco/detection": 0.5,
    "coco/rejection": 0.2,
    "coco/counting": 0.2,
    "coco/region_name": 0.1,
}
"""Mix over any folder in COCO layout."""

REJECTION_SHARE = 0.2
"""Share of the detection data that becomes rejections (paper 4.1)."""


def _shared(weight: float, *sources: str, **weighted: float) -> Mix:
    """Divide `weight` among sources: evenly, or by the numbers of ``dataset__task=number``."""
    parts = dict.fromkeys(sources, 1.0) | {
        name.replace("__", "/"): part for name, part in weighted.items()
    }
    return {source: weight * part / sum(parts.values()) for source, part in parts.items()}


def with_rejection(mix: Mapping[str, float], share: float = REJECTION_SHARE) -> Mix:
    """Return the mix with `share` of every ``dataset/detection`` given to ``dataset/rejection``."""
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
"""Table 10, stage 1: object detection, grounding, region caption.

The paper names the data sets and gives no weights; these are ours.
"""

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
"""Table 10, stage 2. Weights are ours.

OmChat-SFT was never released: LLaVA, The Cauldron and CogVLM stand in.
"""

PAPER_OPN: Mix = _shared(1.0, coco_train__detection=2, objects365__detection=3, v3det__detection=2)
"""Detection data of stage 1. What the authors trained OPN on is not published; ours."""

MIXES: dict[str, Mix] = {
    "drawn_stage1": STAGE1,
    "drawn_stage2": STAGE2,
    "coco": COCO,
    "opn": PAPER_OPN,
    "stage1": PAPER_STAGE1,
    "stage2": PAPER_STAGE2,
}
"""Every mix that has a name."""
