"""Datasets of text in images: documents, street scenes, receipts.

- `doclaynet`: DocLayNet, page layout, and the text of its elements where the cells are there.
- `doclaynet_cells`: the text cells of those pages, brought into image pixels.
- `scene_text`: ICDAR2015 and MLT2019, one ground-truth file an image.
- `syntext`: CurvedSynText150k, synthetic text between two curves.
- `wildreceipt`: WildReceipt, photos of receipts.
"""
