"""A start for the tiny decoder from which look-up in a list is learned in minutes, not hours. ours

From a random start a small decoder sits on a plateau for thousands of steps before it finds the circuits that
a list of (key, item) pairs needs. This start lays their skeleton into an ordinary Qwen2.5 decoder, weights
only: every weight still trains; what words mean, when to stop and how to order answers is all learned.

    layer 0   an item's slot takes the key before it; the next key takes the item and the key before it;
              the bracket that opens an answer takes the phrase two and three tokens back
    layer 1   such a bracket attends to the slots of its phrase, and says their keys;
              a slot attends to earlier slots of its item (where the next key took it), and notes their keys
    layer 2   a key just said attends to the slot that noted it: the next key of the same item;
              a key in a question takes its item
    later     random

Heads that look at positions use the biases of queries and keys, which rotate with the position: the score of
a pair is a sum of cosines of its distance. Heads that look at content use equal projections for queries and
keys, on the slowly rotating dimensions. What a head writes is turned by a random rotation, one per meaning,
so that meanings share the residual stream without mixing. Items live in a space of their own too, as image
tokens do: the words of a phrase are not mistaken for an item of the list.

Shape letters: D hidden size, H heads, K head width.
"""

from typing import Any

import torch
from torch import Tensor

_SLOW = 0.15
"""Rotation a token, in radians, up to which a dimension can compare content over a prompt's length."""
_GAIN = 0.3
"""Output scale of the heads of layer 0: their writing is then about as large as a token's embedding."""
_ANSWER_GAIN = 0.6
"""Output scale of the later heads."""


class _Head:
    """One attention head of a decoder layer, as its slices of the layer's matrices."""

    def __init__(self, attention: Any, index: int, width: int) -> None:
        self._rows = slice(index * width, (index + 1) * width)
        self._attention = attention

    def look_back(self, distance: int, rotation: Tensor, strength: float) -> None:
        """Attend to the token at a fixed distance, whatever it holds."""
        rows, attention = self._rows, self._attention
        attention.q_proj.weight[rows] *= 0.1
        attention.k_proj.weight[rows] *= 0.1
        size = torch.full_like(rotation, strength)
        attention.q_proj.bias[rows] = torch.cat([size, torch.zeros_like(size)])
        angle = rotation * distance
        attention.k_proj.bias[rows] = torch.cat([size * angle.cos(), size * angle.sin()])

    def compare(self, query: Tensor, key: Tensor) -> None:
        """Attend to tokens whose projection by ``key`` float[K, D] agrees with this one's by ``query``."""
        self._attention.q_proj.weight[self._rows] = query
        self._attention.k_proj.weight[self._rows] = key

    def carry(self, read: Tensor, write: Tensor) -> None:
        """Move ``read`` float[K, D] of what is attended to, to the directions ``write`` float[D, K]."""
        self._attention.v_proj.weight[self._rows] = read
        self._attention.o_proj.weight[:, self._rows] = write


@torch.no_grad()
def lay_out_lookup(decoder: Any, seed: int, *, sharpness: float = 2.5, strength: float = 6.0) -> Tensor:
    """Lay the skeleton into a Qwen2.5 decoder, in place; returns the items' rotation float[D, D].

    decoder: transformers' ``Qwen2_5_VLTextModel`` with four heads, as many key-value heads, at least three
    layers and a rope base of 1e4 or more. seed: of the random rotations. sharpness: scale of content
    projections. strength: of position scores.

    Raises ValueError for a decoder of another form.
    """
    config = decoder.config
    heads, size = config.num_attention_heads, config.hidden_size
    if heads != 4 or config.num_key_value_heads != 4 or config.num_hidden_layers < 3:
        raise ValueError(
            f"the look-up start needs 4 heads, 4 key-value heads and 3 layers or more, got {heads}, "
            f"{config.num_key_value_heads} and {config.num_hidden_layers}"
        )
    width = size // heads
    generator = torch.Generator().manual_seed(seed)
    rotation = float(config.rope_parameters["rope_theta"]) ** (-torch.arange(0, width, 2).float() / width)
    slow = torch.where(rotation < _SLOW, 1.0, 0.1).repeat(2)[:, None] * sharpness
    first, second, item, _ = _rotation(size, generator).view(4, width, size)
    of_key, of_phrase, of_earlier, of_item = (_rotation(size, generator) for _ in range(4))
    for layer in decoder.layers:
        layer.mlp.down_proj.weight *= 0.3
        layer.self_attn.o_proj.weight *= 0.3
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.bias.zero_()
    layers = [[_Head(layer.self_attn, head, width) for head in range(4)] for layer in decoder.layers]
    for head, distance, part, meaning in (
        (0, 1, first, of_key),
        (1, 2, item, of_phrase),
        (2, 3, item, of_phrase),
        (3, 1, second, of_key),
    ):
        layers[0][head].look_back(distance, rotation, strength)
        layers[0][head].carry(part, _GAIN * meaning @ part.T)
    # Two heads carry a key, a quarter of its dimensions each.
    for answering, noting, part in ((0, 1, first), (3, 2, second)):
        layers[1][answering].compare(slow * item @ of_phrase.T, slow * item @ of_item.T)
        layers[1][answering].carry(part @ of_key.T, _ANSWER_GAIN * part.T)
        layers[1][noting].compare(slow * part, slow * part @ of_key.T)
        layers[1][noting].carry(item @ of_phrase.T, _ANSWER_GAIN * of_earlier @ item.T)
        layers[2][answering].compare(slow * item, slow * item @ of_earlier.T)
        layers[2][answering].carry(part @ of_key.T, _ANSWER_GAIN * part.T)
    layers[2][1].compare(slow * first, slow * first @ of_key.T)
    layers[2][1].carry(item @ of_item.T, _ANSWER_GAIN * of_phrase @ item.T)
    return of_item


def _rotation(size: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix float[size, size]."""
    return torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
