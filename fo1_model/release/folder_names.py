"""Names that the release goes by, and the rule on folder names in its loader.

The released ``load_pretrained_model`` (vlm_fo1/model/builder.py) reads nothing of a folder before
it has looked at the path it was given, in lower case:

    vlm-fo1                                  must be in it, or no model is built at all
    qwen2.5-vl or qwen2_5_vl                 must be in it too, to choose the model's class
    vlm-fo1-3b                               does instead of these since the name of 2026

``prepare_inputs`` (vlm_fo1/mm_utils.py) looks at the name once more, for ``qwen``. So a name with
``vlm-fo1`` and ``qwen2.5-vl`` suits every version of that code. The rule is about the whole path;
here it is asked of the folder's own name, which stays when the folder moves.
"""

from pathlib import Path

NAMES = ("omlab/VLM-FO1-3B-v01", "omlab/VLM-FO1_Qwen2.5-VL-3B-v01")
"""Hub names of the one checkpoint: the newer, and the one it was published under."""
_LAB = "vlm-fo1"
_FAMILY = ("qwen2.5-vl", "qwen2_5_vl")
_NEWER = "vlm-fo1-3b"
_PREFIX = "VLM-FO1_Qwen2.5-VL_"


def other_names(name: str) -> tuple[str, ...]:
    """Return the other hub names of the checkpoint; none for a name that is not the release's."""
    return tuple(other for other in NAMES if other != name) if name in NAMES else ()


def name_note(folder: str | Path) -> str:
    """Return one line on whether the released loader takes a folder of this name.

    Args:
        folder: The exported folder.
    """
    name = Path(folder).absolute().name
    lower = name.lower()
    if _LAB in lower and any(family in lower for family in _FAMILY):
        return (
            f"the released loader goes by the folder's name: {name} is one it takes; keep "
            f"{_LAB} and {_FAMILY[0]} in it"
        )
    better = f"rename it, for example to {suggested_name(name)}"
    if _NEWER in lower:
        return (
            f"the released loader goes by the folder's name: only its newer versions take {name}, "
            f"and their prepare_inputs asks for a name with qwen; for all of them {better}"
        )
    return (
        f"the released loader goes by the folder's name and will not take {name}: it asks for "
        f"{_LAB} with {' or '.join(_FAMILY)}, or for {_NEWER}; {better}"
    )


def suggested_name(name: str) -> str:
    """Return a folder's name with what every version of the released loader asks for.

    Args:
        name: The name as it is; one that has ``vlm-fo1`` already is not given it twice.
    """
    rest = name
    start = rest.lower().find(_LAB)
    if start >= 0:
        rest = (rest[:start] + rest[start + len(_LAB) :]).strip("-_")
    return f"{_PREFIX}{rest}".rstrip("_")
