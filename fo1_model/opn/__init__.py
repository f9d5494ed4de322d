"""OPN, the Omni Proposal Network: image -> class-agnostic boxes with a localisation score (paper 3.2).

`config` (light), `network` (the module, save and load), `warm_start` (from an OmDet-Turbo), `criterion` (the
loss), `targets` (images and boxes to a batch, outputs back to pixels), `augmentation` (random views of them),
`denoising` (noised queries). The paper gives no code; the design is ours, from OmDet-Turbo's blocks.
"""
