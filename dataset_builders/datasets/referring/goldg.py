"""GoldG: captions of Flickr30k Entities, and of GQA with Visual Genome ("mixed"), in MDETR's form.

MDETR and GLIP wrote the files. They have COCO's form, but an "image" is one caption of an image,
and each box names the characters of the caption that it belongs to (`tokens_positive`). They become
captions with grounded phrases (grounding) and expressions (referring). Only the boxes of a caption
are known beside it, not those of the other captions of the same image.

Sources: https://github.com/ashkamath/mdetr (scripts/pre-training, scripts/utils/dump.py); GLIP's
final_mixed_train_no_coco.json is the mixed file without its COCO images.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from dataset_builders.box_checks import get
from dataset_builders.data_folders import DataFolders
from dataset_builders.image_sources import COCO_TRAIN, FLICKR30K, GQA, coco_id, coco_uri
from dataset_builders.readers.coco_files import CocoImage, open_coco
from dataset_builders.readers.coco_images import CocoForm
from dataset_builders.record_counter import RecordCounter
from dataset_builders.records import BadRecord, ImageRef, Reject, Sample
from dataset_builders.spec import BuildOptions, DatasetSpec, ImageSource, Item
from dataset_builders.tasks.grounding import (
    Mention,
    expression_samples,
    expressions,
    find_phrases,
    grounding_sample,
    labelled,
    read_spans,
)
from dataset_builders.validation import check_text

_FORM = CocoForm(
    image_fields=("caption", "data_source"), box_fields=("tokens_positive",), one_category="object"
)


def build(
    folders: DataFolders,
    options: BuildOptions,
    *,
    dataset: str,
    file: str,
    folder: str,
    images: tuple[ImageSource, ...],
) -> Iterator[Item]:
    """Yield the samples of each caption, the rejects, and the ledger last.

    Args:
        folders: Where the data lies.
        options: What can be chosen about the samples.
        dataset: Name of the dataset.
        file: The JSON, below the data root.
        folder: The images that are not COCO's, below the data root.
        images: What the images belong to, the source of `folder` first; with COCO_TRAIN as the
            second, entries of data_source "coco" are read too.

    Raises:
        SettingError: The file is not of this form.
    """
    counter = RecordCounter()
    with open_coco(folders, file=file, folder=folder, source=images[0], form=_FORM) as coco:
        for item in coco.images(counter):
            if isinstance(item, Reject):
                yield item
                continue
            make = partial(_samples, item, options, dataset, images)
            yield from counter.record(f"images/{item.facts.ref.image_id}", make, "image")
    yield counter.ledger()


def _samples(
    image: CocoImage, options: BuildOptions, dataset: str, images: tuple[ImageSource, ...]
) -> list[Sample]:
    entry = image.facts.ref.image_id  # of the caption; the image itself has an id of its own
    caption = check_text(get(image.fields, "caption"), what="caption")
    mentions = [
        Mention(read_spans(get(fields, "tokens_positive"), caption), None if item.ignore else row)
        for row, (item, fields) in enumerate(
            zip(image.facts.objects, image.box_fields, strict=True)
        )
    ]
    # a phrase of which a box was lost stays text: grounded, it would lack that box
    mentions += [
        Mention(read_spans(get(fields, "tokens_positive"), caption), None)
        for fields in image.lost_fields
    ]
    facts = labelled(replace(image.facts, ref=_image_of(image, images)), caption, mentions)
    phrases = find_phrases(caption, mentions)
    named = [(phrase.text(caption), phrase.rows) for phrase in phrases]
    found = expressions([caption], named, options.single_names)
    return [
        grounding_sample(facts, caption, phrases, options, dataset=dataset, number=entry),
        *expression_samples(facts, found, options, dataset=dataset, number=entry),
    ]


def _image_of(image: CocoImage, images: tuple[ImageSource, ...]) -> ImageRef:
    """Return the image of a caption in the source that it belongs to."""
    ref = image.facts.ref
    if image.fields.get("data_source") != "coco":
        return images[0].ref(images[0].id_of(ref.image_uri), ref.image_uri, ref.width, ref.height)
    if COCO_TRAIN not in images:
        raise BadRecord(
            "unknown_image", f"{ref.image_uri} is COCO's: this is not the file without COCO"
        )
    number = coco_id(ref.image_uri)
    return COCO_TRAIN.ref(number, coco_uri(number), ref.width, ref.height)


def _goldg(
    name: str, *, file: str, folder: str, images: tuple[ImageSource, ...], layout: str, **facts: Any
) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        images=images,
        build=partial(build, dataset=name, file=file, folder=folder, images=images),
        files=(file,),
        tasks=("grounding", "referring"),
        source="https://github.com/ashkamath/mdetr/blob/main/.github/pretrain.md",
        layout=f"{file}   {layout}",
        **facts,
    )


_VG_LICENCE = "Visual Genome CC BY 4.0; GQA's and COCO's images under their own Flickr licences"

DATASETS = (
    _goldg(
        "goldg_mixed",
        file="mdetr_annotations/final_mixed_train_no_coco.json",
        folder="gqa/images",
        images=(GQA,),
        stages=(1,),
        licence=_VG_LICENCE,
        num_samples=1_800_000,  # of about 0.65 million captions, up to two expressions each
        layout="""GLIP's mixed file without COCO: one "image" a caption
gqa/images/2410408.jpg   GQA's images""",
    ),
    _goldg(
        "goldg_mixed_coco",
        file="mdetr_annotations/final_mixed_train.json",
        folder="gqa/images",
        images=(GQA, COCO_TRAIN),
        licence=_VG_LICENCE,
        layout="""MDETR's mixed file: one "image" a caption
gqa/images/2410408.jpg   GQA's images
coco/train2017/000000000009.jpg   COCO's images; those of train2014 are among them""",
    ),
    _goldg(
        "goldg_flickr",
        file="mdetr_annotations/final_flickr_separateGT_train.json",
        folder="flickr30k/flickr30k-images",
        images=(FLICKR30K,),
        stages=(1,),
        licence="Flickr30k: non-commercial research only",
        num_samples=400_000,  # of about 150,000 captions
        layout="""MDETR's Flickr30k file: one "image" a caption
flickr30k/flickr30k-images/1000092795.jpg   Flickr30k's images""",
    ),
)
