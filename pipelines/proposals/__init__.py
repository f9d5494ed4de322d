"""From the images of an image source to the boxes of a detector, one row an image.

- `generate`: the step: its config, its inputs, its pools, its buckets.
- `image_lists`: the images of each bucket, and what is known of each beforehand.
- `workers`: the stages of a run: load images on CPUs, detect where the model sits.
- `detector_inputs`: what a detector needs beside its config: a run, weights, objects, a file.
- `box_files`: boxes of somebody else's detector: which image each belongs to.
- `box_records`: the forms of such files.
"""
