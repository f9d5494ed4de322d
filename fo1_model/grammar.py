"""The region language: which tokens it has, how answers are written and how they are read.

    <ground>red cup</ground><objects><region3><region7></objects>   a phrase and its regions
    <region4>                                                       a bare mention
    <image>, <regionfeat>                                           stand-ins for an image and for
                                                                    the feature of a region

The processor replaces the stand-ins; no answer has them. Spelling and reading rules are those of
the release (vlm_fo1/constants.py, mm_utils.py); the paper writes ``<object>`` and ``<RegionN>``,
which the reader also accepts. Pure Python.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

IMAGE = "<image>"
"""Stand-in for an image in a message."""
REGION_FEATURE = "<regionfeat>"
"""Stand-in for the feature slot of a region in a message."""
PHRASE_TAGS = ("<ground>", "</ground>")
"""Tags around a phrase."""
OBJECT_TAGS = ("<objects>", "</objects>")
"""Tags around the index tokens of a phrase; the opening one must touch the closing phrase tag."""

# ASCII: "\u017f" is no s and an Arabic digit no index. Twelve digits are more than any index has.
_FLAGS = re.IGNORECASE | re.ASCII
_INDEX = re.compile(r"<region(\d{1,12})>", _FLAGS)
_GROUNDED = re.compile(r"<ground>(.*?)</ground><objects?>(.*?)</objects?>", _FLAGS)
_TAG = re.compile(r"</?(?:ground|objects?)>", _FLAGS)
_RESERVED = re.compile(
    r"</?ground>|</?objects?>|<region\d+>|<regionfeat>|<image>|<\|\w+\|>", _FLAGS
)
_BETWEEN = re.compile(r"[\s,;]*")
"""What may stand between the index tokens of a phrase; the release writes nothing there."""
_SPELLINGS = (
    *PHRASE_TAGS, *OBJECT_TAGS, "<object>", "</object>", "<region0>", REGION_FEATURE, IMAGE, "<|x|>"
)  # fmt: skip
"""One of each of the reserved spellings."""

Part = tuple[str | None, Sequence[int]]
"""A pair (text, regions).

Text alone, regions alone (a bare mention), or both (a grounded phrase)."""


@dataclass(frozen=True, kw_only=True)
class ParsedAnswer:
    """What an answer says."""

    phrases: tuple[tuple[str, tuple[int, ...]], ...]
    """Pairs (phrase, region indices ascending) in the order first said; no two phrases are
    alike."""
    regions: tuple[int, ...]
    """Every region named anywhere in the answer, in the order first said, without repeats."""
    problem: str | None
    """What was wrong with the answer; None when it reads cleanly."""


def region_token(index: int) -> str:
    """Return the index token of region ``index``."""
    return f"<region{index}>"


def new_tokens(num_region_tokens: int) -> tuple[str, ...]:
    """Return the tokens a base tokenizer lacks, in the order they are appended in (release)."""
    return (
        *(region_token(index) for index in range(num_region_tokens)),
        *PHRASE_TAGS,
        *OBJECT_TAGS,
    )


@lru_cache(512)  # few numbers of regions come up again and again
def region_prompt(num_regions: int, first: int = 0) -> str:
    """Return the region line of a prompt: index token, feature slot, of every region (release).

    Args:
        num_regions: How many regions the line has; nothing stands between them.
        first: Index of the first one.
    """
    return "".join(
        f"{region_token(index)}{REGION_FEATURE}" for index in range(first, first + num_regions)
    )


def image_question(question: str, num_regions: int = 0) -> str:
    """Return a user's turn about one image: regions on a line of their own, then the question.

    Without regions nothing is written between image and question: what stands there belongs to the
    model that reads it (``ModelConfig.image_gap``).

    Args:
        question: Text of the turn.
        num_regions: How many regions the image has.
    """
    regions = f"\n{region_prompt(num_regions)}\n" if num_regions else ""
    return f"{IMAGE}{regions}{question}"


def reserved_text(text: str) -> bool:
    """Return whether free text holds what the region language or the chat markup reserves."""
    return _RESERVED.search(text) is not None


def unfinished_tag(text: str) -> str:
    """Return the end of ``text`` that more text may turn into something reserved.

    Lower case, and ends that go on alike are one: "<REGION12" gives "<region0", "<|im_s" gives
    "<|x".

    Returns:
        The end, empty when there is none.
    """
    end = text[text.rfind("<") :].lower() if "<" in text else ""
    for spelt, one in ((r"^<region\d+", "<region0"), (r"^<\|\w+", "<|x")):
        end = re.sub(spelt, one, end, flags=re.ASCII)
    unfinished = any(spelling.startswith(end) and spelling != end for spelling in _SPELLINGS)
    return end if unfinished else ""


def mentioned_regions(text: str) -> tuple[int, ...]:
    """Return the region indices in ``text``, in order, with repeats."""
    return tuple(int(index) for index in _INDEX.findall(text))


def render(parts: Iterable[Part]) -> str:
    """Return an answer as the model writes it.

    Args:
        parts: Text alone is copied; regions alone become index tokens in the given order; text with
            regions becomes a grounded phrase whose indices are sorted and unique.

    Raises:
        ValueError: For a part that would not read back: reserved text, a negative index, a phrase
            that is empty, has outer blanks or a line break, a part that is empty.
    """
    pieces = []
    for text, regions in parts:
        if any(index < 0 for index in regions):
            raise ValueError(f"region indices must not be negative: {list(regions)}")
        if text is None:
            if not regions:
                raise ValueError("a part needs text or regions")
            pieces.append("".join(region_token(index) for index in regions))
        elif reserved_text(text):
            raise ValueError(f"text holds a reserved tag: {text!r}")
        elif not regions:
            pieces.append(text)
        else:
            if not text or text != text.strip() or len(text.splitlines()) != 1:
                raise ValueError(
                    f"a grounded phrase must be one line without outer blanks: {text!r}"
                )
            indices = "".join(region_token(index) for index in sorted(set(regions)))
            pieces.append(
                f"{PHRASE_TAGS[0]}{text}{PHRASE_TAGS[1]}{OBJECT_TAGS[0]}{indices}{OBJECT_TAGS[1]}"
            )
    return "".join(pieces)


def parse(text: str, num_regions: int) -> ParsedAnswer:
    """Return what an answer says.

    A phrase counts when its closing tag touches an objects tag and neither span holds a line break;
    it is stripped, and equal phrases are united. An empty objects pair gives a phrase without
    regions (release, all of it). The release reads over words among the regions of a phrase, and so
    does this, but an answer that has them is reported.

    Args:
        text: The answer, without the end of the turn.
        num_regions: How many regions the sample has; indices beyond are dropped and reported.
    """
    united: dict[str, set[int]] = {}
    wordy = False
    for phrase, objects in _GROUNDED.findall(text):
        united.setdefault(phrase.strip(), set()).update(mentioned_regions(objects))
        wordy = wordy or not _BETWEEN.fullmatch(_INDEX.sub("", objects))
    said = tuple(dict.fromkeys(mentioned_regions(text)))
    unknown = [index for index in said if index >= num_regions]
    problems = []
    if unknown:
        problems.append(f"unknown regions {', '.join(map(str, unknown))}")
    if _TAG.search(_GROUNDED.sub("", text)) or any(_TAG.search(phrase) for phrase in united):
        problems.append("unpaired tags")
    if wordy:
        problems.append("words among the regions of a phrase")
    return ParsedAnswer(
        phrases=tuple(
            (phrase, tuple(sorted(index for index in indices if index < num_regions)))
            for phrase, indices in united.items()
        ),
        regions=tuple(index for index in said if index < num_regions),
        problem="; ".join(problems) or None,
    )
