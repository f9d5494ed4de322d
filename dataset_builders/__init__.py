"""Datasets as they are on disk, read into samples: facts about images, no detector and no model.

`DATASETS` names every dataset; a family's module holds its builders and, at its end, its lines of this table.
"""

from dataset_builders.data_folders import DataFolders
from dataset_builders.datasets.detection import (
    coco,
    crowdhuman,
    lvis,
    objects365,
    paco,
    v3det,
    vaw,
    visdrone,
)
from dataset_builders.datasets.instruction import (
    cauldron,
    cogvlm,
    llava,
    mdvp,
    osprey,
    sharegpt4v,
    tallyqa,
    vcr,
    visual_cot,
    visual_genome,
)
from dataset_builders.datasets.ocr import doclaynet, scene_text, syntext, wildreceipt
from dataset_builders.datasets.referring import (
    c_refcoco,
    finecops,
    flickr30k,
    goldg,
    grit,
    humanref,
    refcoco,
    refcoco_hf,
    refcoco_mdetr,
    rexverse,
)
from dataset_builders.drawn_world import datasets as drawn_world
from dataset_builders.spec import BuildOptions, DatasetSpec, ImageSource

__all__ = ["DATASETS", "IMAGE_SOURCES", "BuildOptions", "DataFolders", "DatasetSpec", "ImageSource"]

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for family in (
        drawn_world,
        coco,  # and any folder in its layout
        objects365,
        v3det,
        lvis,
        vaw,
        visdrone,
        crowdhuman,
        refcoco,
        refcoco_mdetr,
        refcoco_hf,
        c_refcoco,
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
        wildreceipt,
        llava,
        cauldron,
        cogvlm,
    )
    for spec in family.DATASETS
}
"""Every dataset by name; `_all` asks each image for all categories at once, as COCO AP is measured."""
IMAGE_SOURCES: dict[str, ImageSource] = {
    source.name: source
    for spec in DATASETS.values()
    for source in (*spec.images, *spec.optional_images)
}
"""Every image source by name."""
