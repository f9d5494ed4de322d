"""Datasets as they are on disk, read into samples: facts about images, no detector and no model.

`DATASETS` names every dataset; a family's module holds its builders and, at its end, its lines of this table.
"""

from dataset_builders import (
    attributes,
    cauldron,
    cogvlm,
    counterfactual,
    crowdhuman,
    doclaynet,
    drawn_world,
    exhaustive,
    finecops,
    flickr30k,
    goldg,
    grit,
    humanref,
    llava,
    lvis,
    mdvp,
    objects365,
    osprey,
    paco,
    receipts,
    refcoco,
    refer_hf,
    refer_mdetr,
    rexverse,
    scene_text,
    sharegpt4v,
    syntext,
    tallyqa,
    v3det,
    vcr,
    visdrone,
    visual_cot,
    visual_genome,
)
from dataset_builders.folders import DataFolders
from dataset_builders.spec import BuildOptions, DatasetSpec, ImageSource

__all__ = ["DATASETS", "IMAGE_SOURCES", "BuildOptions", "DataFolders", "DatasetSpec", "ImageSource"]

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for family in (
        drawn_world,
        exhaustive,  # COCO, and any folder in its layout
        objects365,
        v3det,
        lvis,
        attributes,  # VAW
        visdrone,
        crowdhuman,
        refcoco,
        refer_mdetr,
        refer_hf,
        counterfactual,  # C-REC
        finecops,
        goldg,
        flickr30k,
        grit,
        rexverse,
        paco,
        visual_genome,
        osprey,
        sharegpt4v,
        visual_cot,
        humanref,
        tallyqa,
        vcr,
        mdvp,
        doclaynet,
        scene_text,  # MLT2019, ICDAR2015
        syntext,
        receipts,
        llava,
        cauldron,
        cogvlm,
    )
    for spec in family.DATASETS
}
"""Every dataset by name; `_all` asks each image for all categories at once, as COCO AP is measured."""
IMAGE_SOURCES: dict[str, ImageSource] = {
    source.name: source for spec in DATASETS.values() for source in (*spec.images, *spec.optional_images)
}
"""Every image source by name."""
