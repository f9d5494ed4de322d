"""Seeds from names: the same numbers as ever, because draws and proposals hang on them."""

import hashlib

import numpy as np
import torch

from fo1_model.generation.decoding import _generator
from fo1_model.seeds import seed_of


def test_a_seed_follows_from_the_names_in_their_order():
    digest = hashlib.sha256(b"3:coco/17").digest()
    assert seed_of(3, "coco/17") == int.from_bytes(digest[:8], "big")
    assert len({seed_of(3, "a"), seed_of("a", 3), seed_of(3), seed_of()}) == 4
    np.random.default_rng(seed_of(3, "a"))


def test_the_draws_of_an_answer_are_those_of_earlier_versions():
    digest = hashlib.sha256(b"5/s1").digest()
    expected = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    own = _generator(5, "s1")
    assert torch.equal(torch.rand(4, generator=own), torch.rand(4, generator=expected))
