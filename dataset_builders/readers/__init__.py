"""Forms of annotation files that several datasets share, streamed: memory stays small for any size.

Modules:

    coco_files         files in COCO's form: images, categories and boxes, by image
    coco_images        the list of images of such a file, and how files differ from COCO's own
    coco_tables        the pass over such a file, into a temporary database
    conversations      LLaVA's form: a list of records with messages
    grouped_records    records of big files, brought together by image
    json_files         arrays of big JSON files, one element at a time
    json_lines         files of one JSON value a line
    tsv_files          IDEA Research's image TSVs, and the annotation TSVs that point into them
    scratch_database   a temporary database for what does not fit into memory
"""
