"""From datasets to a trained, evaluated model, on Ray or in one process.

Rooms, in the order of the flow (`README.md` beside this file draws it):

- `proposals`: images of an image source -> boxes of a detector.
- `shards`: samples and proposals -> training and evaluation examples.
- `loading`: shards and a mix -> the batches of each rank.
- `training`: batches -> weights, with checkpoints, validation and tracking.
- `evaluation`: a trained model and evaluation shards -> predictions -> metrics.
- `reports`: pages, plots and annotated images of all of these.
- `tiny_base`: how the small base model that ships with the project is made.

What every step stands on:

- `artifacts`: folders with a fingerprint, written bucket by bucket, manifest last.
- `fingerprints`: the hash of everything that can change a result.
- `storage`: roots and filesystems, local or object stores.
- `row_accounting`: ledgers, where rows in are rows out and rejects.
- `schemas`: rows of proposals and predictions, and the region example.
- `samples`: the step that runs a dataset builder.
- `bucket_spill`: rows of one stream sorted into buckets on local disk.
- `imported_models`: model folders of others, as runs.
- `model_identity`: which model a run holds, imported or trained.
- `input_digests`: identity of the files that artifacts are made from.
- `boxes`: areas, overlaps and clipping.
- `example_image`: what the model sees of an example's image.
- `train_config`: how a model is trained.
- `seeds`: seeds from names, the same everywhere.
- `shuffled_regions`: the control experiment with regions swapped, for training and evaluation.

Where it runs:

- `cluster`: settings of a step, the connection to Ray, sizes of pools.
- `worker_pools`: tasks sent through pools of workers, here or on Ray.
- `available_cpus`: CPUs that affinity and the container give.
- `progress`: the line that says how far a step is.
- `errors`: the error of a wrong setting.
"""
