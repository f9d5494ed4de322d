"""A start for the tiny decoder from which look-up is learned in minutes, not hours (ours).

From a random start a small decoder sits on a plateau for thousands of steps before it finds the
circuits that a list of (key, item) pairs needs. This start lays their skeleton into an ordinary
Qwen2.5 decoder, weights only: every weight still trains; what words mean, when to stop and how to
order answers is all learned.

The residual stream is divided, so that meanings do not mix (`Spaces`), and a word has a short code
in each space:

    layer 0   an item's slot takes the key before it;
              the next key takes that item, and the key before it;
              the bracket that opens an answer takes the phrase two and three tokens back
    layer 1   such a bracket attends to the slots of its phrase, and takes their keys;
              a slot attends to earlier slots of its item (where the next key took it),
              notes their keys, and that it is not the first
              a phrase in a question takes the item it finds, and flags whether that is its own
    layer 2   every token learns whether a phrase was flagged;
              the bracket attends to the first slot of its phrase, and takes its key once more;
              a key just said attends to the slot that noted it, and takes that slot's key;
              a key in a question takes its item
    layer 3   keys taken are said;
              where an answer starts, and after its first word,
              comes the item of the key in the question
    later     random

Heads that look at positions use the biases of queries and keys, which rotate with the position: the
score of a pair is a sum of cosines of its distance. Heads that look at content compare codes on
dimensions that hardly rotate over a prompt.

Shape letters: D hidden size, K head width, C code width (K / 2), W word width.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import SettingError

_SHARPNESS = 2.6
"""Scale of content queries and keys: a whole match then outscores half a one by about ten."""
_STRENGTH = 6.0
"""Scale of position queries and keys."""
_QUIET = 0.02
"""Factor on the outputs of what starts at random, so that it does not drown the skeleton."""
_SAY = 0.25
"""Output scale of heads that say words: louder than the token's own embedding."""
_FOUND = 1.5
"""Output scale of heads that found something, against those that note what stands before."""
_SEEK = 6.0
"""Scale of the queries for present phrases."""
_AGREE = 0.05
"""Output scale of the products that say whether a phrase is present."""
_FLAGS = 4
"""Number of dimensions that say that a phrase is present."""
_NAME_AFTER = 6
"""Tokens from the key in a question to the token that says the first word of its item's name."""


@dataclass(frozen=True, kw_only=True)
class Spaces:
    """How the residual stream is divided, and how words are coded."""

    words: slice
    """Dimensions of the token embeddings, input and output."""
    present: slice
    """Flags, large where the phrase two and three tokens back is that of some slot."""
    before: slice
    """Both codes of the token before."""
    phrase: slice
    """Code of the words two and three tokens back."""
    item: slice
    """Code of a slot's item."""
    earlier: slice
    """Codes of earlier keys of a slot's item; at a key, the code of its item or the item before."""
    code: Tensor
    """float32[C, W], orthogonal rows; the code of a word has about the word's norm."""
    second_code: Tensor
    """float32[C, W], orthogonal to the first."""

    @property
    def item_of_words(self) -> Tensor:
        """Return float32[D, D], the map from word embeddings to the item that they name."""
        moved = torch.zeros(self.earlier.stop, self.earlier.stop)
        moved[self.item, self.words] = self.code
        return moved


def divide(size: int, width: int, seed: int) -> Spaces:
    """Divide a residual stream; the words get what the codes leave.

    Args:
        size: Hidden size D.
        width: Width K of the heads.
        seed: Seed of the codes.

    Raises:
        SettingError: Less than two code widths are left for words.
    """
    code = width // 2
    words = size - 5 * code - _FLAGS
    if words < 2 * code:
        raise SettingError(
            f"hidden size {size} leaves {words} dimensions for words, needs {2 * code}: choose a "
            "wider size of model"
        )
    edges = [0, *(size - 5 * code - _FLAGS + offset for offset in (0, _FLAGS))]
    edges += [size - part * code for part in (3, 2, 1, 0)]
    parts = [slice(low, high) for low, high in itertools.pairwise(edges)]
    generator = torch.Generator().manual_seed(seed)
    basis = (
        torch.linalg.qr(torch.randn(words, words, generator=generator))[0] * (words / code) ** 0.5
    )
    return Spaces(
        words=parts[0],
        present=parts[1],
        before=parts[2],
        phrase=parts[3],
        item=parts[4],
        earlier=parts[5],
        code=basis[:code].clone(),
        second_code=basis[code : 2 * code].clone(),
    )


class _Head:
    """One attention head of a decoder layer, as its slices of the layer's matrices.

    Positions are compared on all rotary pairs, contents on the slower half, dimension i with
    i + K / 2.
    """

    def __init__(self, attention: Any, index: int, width: int) -> None:
        self._rows = slice(index * width, (index + 1) * width)
        self._attention, self._width = attention, width

    def look_back(self, distance: int, rotation: Tensor) -> None:
        """Attend to the token at a fixed distance, whatever it holds."""
        # Contents are made quiet, biases loud: then the score depends on the distance alone, and is
        # largest where the key's rotation has caught up with the query's.
        rows, attention = self._rows, self._attention
        attention.q_proj.weight[rows] *= _QUIET
        attention.k_proj.weight[rows] *= _QUIET
        size = torch.full_like(rotation, _STRENGTH)
        attention.q_proj.bias[rows] = torch.cat([size, torch.zeros_like(size)])
        angle = rotation * distance
        attention.k_proj.bias[rows] = torch.cat([size * angle.cos(), size * angle.sin()])

    def compare(self, query: Tensor, key: Tensor) -> None:
        """Attend to tokens whose code agrees with this one's.

        Args:
            query: float[C, D], reads the code of the token that attends.
            key: float[C, D], reads the code of the tokens attended to.
        """
        # The slower half of the rotary pairs: the faster ones would turn codes apart with distance.
        quarter = self._width // 4
        slow = [*range(quarter, 2 * quarter), *range(3 * quarter, 4 * quarter)]
        for projection, read in ((self._attention.q_proj, query), (self._attention.k_proj, key)):
            weight = torch.zeros(self._width, read.shape[1])
            weight[slow] = _SHARPNESS * read
            projection.weight[self._rows] = weight

    def seek(self, flags: slice, strength: float) -> None:
        """Attend to tokens whose ``flags`` are large."""
        quarter = self._width // 4
        rows = torch.arange(quarter, quarter + flags.stop - flags.start) + self._rows.start
        for projection in (self._attention.q_proj, self._attention.k_proj):
            projection.weight[self._rows] = 0.0
        self._attention.q_proj.bias[rows] = strength
        self._attention.k_proj.weight[rows, torch.arange(flags.start, flags.stop)] = 1.0

    def carry(self, *moves: tuple[Tensor, Tensor]) -> None:
        """Move codes of what is attended to into this token's residual stream.

        Args:
            *moves: Pairs of ``read`` float[C, D], which takes a code, and ``write`` float[D, C],
                which says where it goes.
        """
        attention, rows = self._attention, self._rows
        attention.v_proj.weight[rows] = 0.0
        attention.o_proj.weight[:, rows] = 0.0
        at = rows.start
        for read, write in moves:
            span = slice(at, at + len(read))
            attention.v_proj.weight[span] = read
            attention.o_proj.weight[:, span] = write
            at = span.stop


@torch.no_grad()
def lay_out_lookup(decoder: Any, seed: int) -> Spaces:
    """Lay the skeleton into a Qwen2.5 decoder, in place.

    Args:
        decoder: Transformers' ``Qwen2_5_VLTextModel`` with four heads, as many key-value heads, at
            least four layers and a rope base of 1e4 or more.
        seed: Seed of the codes.

    Returns:
        How its residual stream is divided.

    Raises:
        SettingError: The decoder is of another form.
    """
    # The layout below is written out for this form: four heads by number, four layers by number.
    config = decoder.config
    heads, size = config.num_attention_heads, config.hidden_size
    if heads != 4 or config.num_key_value_heads != 4 or config.num_hidden_layers < 4:
        raise SettingError(
            "the look-up start needs 4 heads, 4 key-value heads and 4 layers or more, got "
            f"{heads}, {config.num_key_value_heads} and {config.num_hidden_layers}: choose another "
            "size of model"
        )
    width = size // heads
    spaces = divide(size, width, seed)
    rotation = float(config.rope_parameters["rope_theta"]) ** (
        -torch.arange(0, width, 2).float() / width
    )
    # What is not laid out stays random, but quiet; it learns its part in training.
    for layer in decoder.layers:
        layer.mlp.down_proj.weight *= _QUIET
        layer.self_attn.o_proj.weight *= _QUIET
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.bias.zero_()
    layers = [
        [_Head(layer.self_attn, head, width) for head in range(4)] for layer in decoder.layers
    ]
    _lay_heads(layers, spaces, rotation, size)
    _agree(decoder.layers[1].mlp, spaces)
    return spaces


def _lay_heads(layers: list[list[_Head]], spaces: Spaces, rotation: Tensor, size: int) -> None:
    """Lay out the heads that the module's docstring lists, layer by layer."""
    code = len(spaces.code)

    def read(space: slice, offset: int = 0) -> Tensor:
        taken = torch.zeros(code, size)
        taken[torch.arange(code), torch.arange(code) + space.start + offset] = 1.0
        return taken

    first, second = torch.zeros(code, size), torch.zeros(code, size)
    first[:, spaces.words], second[:, spaces.words] = spaces.code, spaces.second_code
    # A normalised input is sqrt(D) long, a word one: what is noted is as long as a word.
    note = size**-0.5
    key, second_key = read(spaces.before), read(spaces.before, code)
    phrase, item, earlier = read(spaces.phrase), read(spaces.item), read(spaces.earlier)
    found = ((key, _FOUND * note * key.T), (second_key, _FOUND * note * second_key.T))
    looking_back = (
        (1, ((first, note * key.T), (second, note * second_key.T))),
        (2, ((first, note * phrase.T),)),
        (3, ((first, note * phrase.T),)),
        (1, ((item, note * earlier.T),)),
    )
    for head, (distance, moves) in zip(layers[0], looking_back, strict=True):
        head.look_back(distance, rotation)
        head.carry(*moves)
    layers[1][0].compare(phrase, item)
    layers[1][0].carry(*found)
    layers[1][1].compare(item, earlier)
    layers[1][1].carry((phrase, _FOUND * note * earlier.T))
    # What an earlier slot holds too is taken off a slot's match: of equal items the first one
    # answers.
    layers[1][2].compare(item, earlier)
    layers[1][2].carry((earlier, _FOUND * note * phrase.T))
    layers[2][2].compare(phrase, item - phrase)
    layers[2][2].carry(*found)
    # A phrase that asks takes the item it found; whether the two agree, a product, the MLP says.
    layers[1][3].compare(phrase, item)
    layers[1][3].carry((item, note * item.T))
    flags = torch.eye(size)[spaces.present]
    layers[2][3].seek(spaces.present, _SEEK)
    layers[2][3].carry((flags, note * flags.T))
    layers[2][0].compare(first, earlier)
    layers[2][0].carry(*found)
    layers[2][1].compare(first, key)
    layers[2][1].carry((item, _FOUND * note * earlier.T))
    layers[3][2].look_back(0, rotation)
    layers[3][2].carry((key, _SAY * first.T), (second_key, _SAY * second.T))
    for head, distance in ((layers[3][0], _NAME_AFTER), (layers[3][1], _NAME_AFTER + 1)):
        head.look_back(distance, rotation)
        head.carry((earlier, _SAY * first.T))


def _agree(mlp: Any, spaces: Spaces) -> None:
    """Flag tokens whose phrase and item agree, by their product summed over the code.

    The MLP forms it from two units a dimension: silu(a) b - silu(-a) b = a b.
    """
    code = len(spaces.code)
    for sign, start in ((1.0, 0), (-1.0, code)):
        units, place = torch.arange(start, start + code), torch.arange(code)
        for projection in (mlp.gate_proj, mlp.up_proj):
            projection.weight[units] = 0.0
        mlp.gate_proj.weight[units, place + spaces.phrase.start] = sign
        mlp.up_proj.weight[units, place + spaces.item.start] = 1.0
        mlp.down_proj.weight[:, units] = 0.0
        mlp.down_proj.weight[spaces.present, start : start + code] = sign * _AGREE
