"""Datasets of boxes with category names, from exhaustive labels to federated ones.

- `coco`: COCO 2017, and any folder in COCO's layout; labels are exhaustive.
- `objects365`: Objects365, versions 1 and 2, in COCO's JSON with habits of its own.
- `objects365_names`: its misspelt, compound and easily confused names.
- `v3det`: V3Det, 13,204 categories; what may be called absent comes from its tree.
- `v3det_tree`: that category tree, read and asked.
- `lvis`: LVIS, federated labels: each image says which categories were looked for.
- `vaw`: VAW, attributes of boxed objects on Visual Genome images.
- `visdrone`: VisDrone2019-DET, drone images with hundreds of small boxes.
- `crowdhuman`: CrowdHuman, every person of an image, crowds as ignore regions.
- `paco`: PACO, objects, their parts and attributes of both.
"""
