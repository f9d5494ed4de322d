"""Names of the release's tensors: for each of ours the released one.

    vlm.model.language_model.*   model.*                    (embed_tokens, layers, norm)
    vlm.lm_head.weight           lm_head.weight             (absent when tied)
    vlm.model.visual.*           model.vision_tower.image_tower.*
    image_projector.*            model.mm_projector.*
    auxiliary.model.*            model.vision_tower_aux.image_tower.*   (timm's names to its own)
    region_encoder.pyramid.*     model.object_vp_extractor.simple_fpn.*
    region_encoder.*_norm.*      model.object_vp_extractor.{aux,vt}_region_norm.*
    region_encoder.connector.*   model.mm_projector_aux.*

A single linear layer may be a bare one in the release, without a number in its name. New vocabulary
rows have no name of their own there: they lie inside the embedding and the head.
"""

import re
from collections.abc import Collection

from fo1_model.errors import SettingError

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
VISION = "model.vision_tower.image_tower."
AUXILIARY = "model.vision_tower_aux.image_tower."
REGION = "model.object_vp_extractor."
PROJECTOR = "model.mm_projector."
CONNECTOR = "model.mm_projector_aux."

OWN_EMBEDDING = "vlm.model.language_model.embed_tokens.weight"
OWN_HEAD = "vlm.lm_head.weight"
NEW_ROWS = {"new_rows.weight": OWN_EMBEDDING, "new_output_rows.weight": OWN_HEAD}
"""Our new vocabulary rows -> our matrix that the release has them in."""

_PREFIXES = (
    ("vlm.model.language_model.", "model."),
    ("vlm.model.visual.", VISION),
    ("vlm.lm_head.", "lm_head."),
    ("image_projector.", PROJECTOR),
    ("region_encoder.pyramid.", f"{REGION}simple_fpn."),
    ("region_encoder.auxiliary_norm.", f"{REGION}aux_region_norm."),
    ("region_encoder.primary_norm.", f"{REGION}vt_region_norm."),
    ("region_encoder.connector.", CONNECTOR),
)
_HALF = {
    "cpe1.proj": "conv1.fn.dw",
    "cpe2.proj": "conv2.fn.dw",
    "norm1": "{kind}_attn.norm",
    "attn": "{kind}_attn.fn",
    "norm2": "ffn.norm",
    "mlp": "ffn.fn.net",
}
"""Names inside half a block of DaViT: timm's and the release's."""
_BLOCK = re.compile(
    r"stages\.(\d+)\.blocks\.(\d+)\.(spatial|channel)_block\.(cpe\d\.proj|[a-z]+\d?)\.(.+)"
)


def released_name(own: str, bare: Collection[str] = ()) -> str:
    """Return the released name of one of our tensors.

    Args:
        own: Our name.
        bare: Released prefixes (``PROJECTOR``, ``CONNECTOR``) whose one layer goes without a
            number.

    Raises:
        SettingError: For a tensor that the release has no place for.
    """
    if own.startswith("auxiliary.model."):
        return AUXILIARY + davit_name(own.removeprefix("auxiliary.model."))
    for ours, released in _PREFIXES:
        if own.startswith(ours):
            rest = own.removeprefix(ours)
            return released + (rest.removeprefix("0.") if released in bare else rest)
    raise SettingError(f"the release has no place for {own}")


def davit_name(timm_name: str) -> str:
    """Return the release's name of a DaViT tensor, which is Florence-2's.

    An image enters a stage through its convolution.
    """
    if found := _BLOCK.fullmatch(timm_name):
        stage, block, kind, part, rest = found.groups()
        part = _HALF[part].format(kind="window" if kind == "spatial" else "channel")
        return f"blocks.{stage}.{block}.{kind}_block.{part}.{rest}"
    for pattern, released in (
        (r"stem\.conv\.(.+)", r"convs.0.proj.\1"),
        (r"stem\.norm\.(.+)", r"convs.0.norm.\1"),
        (r"stages\.(\d+)\.downsample\.conv\.(.+)", r"convs.\1.proj.\2"),
        (r"stages\.(\d+)\.downsample\.norm\.(.+)", r"convs.\1.norm.\2"),
    ):
        if re.fullmatch(pattern, timm_name):
            return re.sub(pattern, released, timm_name)
    raise SettingError(f"the release's DaViT has no place for {timm_name}")
