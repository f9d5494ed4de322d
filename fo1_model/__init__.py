"""A VLM that answers with regions, its proposal network, and detectors; usable alone.

Nothing is imported here, so that ``import fo1_model`` costs nothing. ``import fo1_model.hub`` makes
our model folders known to transformers' auto classes.

The model:
    model            FO1Model: VLM, auxiliary tower, region encoder, new vocabulary rows, composed
    config           every choice of a model as frozen dataclasses
    sizes            named sizes: whole configs
    auxiliary_tower  the second vision tower (DaViT)
    pyramid          SimpleFP: one map of a ViT becomes four levels
    region_pooling   mean-pooled RoIAlign as one matrix product
    region_encoder   maps and boxes become region tokens
    embeddings       new vocabulary rows beside a frozen base matrix
    boxes            the one convention of boxes, and pure functions over it

In and out:
    grammar          how answers with regions are written and read
    processing       image, boxes and messages become ids, labels, positions and pixels
    images           the size that the towers see an image in
    batch            one encoded sample, and samples side by side

Training and files:
    lora             low-rank adapters on the decoder, merged or alone
    stages           which parameters train in which stage
    acceleration     recomputed activations, compiled layers, the fastest attention
    checkpoint       model folders, read and written, and new models
    weights          safetensors files, tensor by tensor
    hub              our folders for transformers' auto classes
    seeds            seeds from names
    errors           SettingError

Rooms:
    pretrained       what makes the model one of transformers': generate, device_map, push_to_hub
    generation       answers: decoded in batches, free or held to the grammar
    vlms             VLM families, one file each, and new models on their published weights
    release          the authors' checkpoints, in and out
    opn              the proposal network
    detectors        whatever proposes boxes, behind one protocol
"""
