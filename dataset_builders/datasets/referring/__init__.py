"""Datasets of expressions and captions whose phrases are boxed.

- `refcoco`: RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO as they are distributed.
- `refcoco_mdetr`: the same expressions in MDETR's form.
- `refcoco_hf`: RefCOCO's family as parquet of the Hugging Face hub.
- `c_refcoco`: C-RefCOCO, C-RefCOCO+ and C-RefCOCOg, half of which fit nothing.
- `finecops`: FineCops-Ref, with negative expressions and edited images.
- `goldg`: GoldG, captions of Flickr30k, GQA and Visual Genome in MDETR's form.
- `flickr30k`: Flickr30k Entities as published, bracketed sentences and XML.
- `grit`: GRIT (Kosmos-2), captions from the web in tar shards or tables.
- `rexverse`: Rexverse-2M, descriptions and expressions of regions in TSV files.
- `humanref`: HumanRef-CoT, expressions about persons with a reasoning.
"""
