"""Datasets as they are on disk, read into samples: facts about images, no detector and no model.

`DATASETS` names every dataset; the module of a dataset holds its builder and, at its end, its lines
of this table. README.md of this folder has the table of datasets, and shows how to add one.

What a builder yields and reads:

    records             Sample, Reject and Ledger, with their arrow schemas
    spec                DatasetSpec, ImageSource and BuildOptions: what a dataset is
    data_folders        where the folders of datasets lie on this machine
    images              uris, bytes, sizes and pixels of images, and the bucket of an image
    image_sources       collections of images that several datasets share
    image_annotations   ImageFacts: the boxes of one image, and windows into a crowded one
    containers          images inside tar, TSV and parquet files

What it checks, and what it draws:

    validation          what every sample must keep to
    box_checks          box forms, clipping, numbers of JSON files, files that must be there
    masks               boxes of polygons and run lengths
    names               names of categories in questions, plurals, names that mean the same
    record_counter      records read, used and rejected
    benchmark_leakage   images of benchmarks, which no training example may show
    seeds               a seed from names
    errors              SettingError

Rooms:

    datasets            a file a dataset, in the rooms detection, referring, instruction and ocr
    readers             forms of files, streamed
    tasks               from facts about an image to the samples of a task
    drawn_world         the synthetic world of tests and demo, in official formats
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
        coco,
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
        scene_text,
        syntext,
        wildreceipt,
        llava,
        cauldron,
        cogvlm,
    )
    for spec in family.DATASETS
}
"""Every dataset by name; a name that ends in `_all` asks each image for all categories at once, as
COCO AP is measured."""
IMAGE_SOURCES: dict[str, ImageSource] = {
    source.name: source
    for spec in DATASETS.values()
    for source in (*spec.images, *spec.optional_images)
}
"""Every image source by name."""
