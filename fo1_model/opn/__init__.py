"""OPN, the Omni Proposal Network: class-agnostic boxes with localisation scores (paper 3.2).

The paper gives no code; the design is ours, from OmDet-Turbo's blocks.

- `config`: what the network is and how it learns, with its named sizes; imports nothing heavy.
- `network`: the module, and saving and loading it.
- `warm_start`: an OPN from the weights of an OmDet-Turbo.
- `criterion`: the loss.
- `targets`: images and boxes to a batch, and boxes back to pixels.
- `augmentation`: random views of training images.
- `denoising`: noised queries that the decoder learns to restore.
"""
