import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor, ImageDraw, ImageFont

from pipelines.reports.drawing import PALETTE, Mark, _place, draw_marks, jpeg_uri, region_colour
from pipelines.reports.html_page import (
    Card,
    Cards,
    Facts,
    Line,
    Plots,
    Section,
    Table,
    chips,
    render_page,
    text_table,
)
from pipelines.reports.plots import curves, histogram

HOSTILE = (
    "<script>alert('x')</script><img src=x onerror=alert(1)>\"' onload=alert(2) & {{ 7*7 }}"
    " </title>"
)
PIXEL = jpeg_uri(Image.new("RGB", (1, 1)))


class Tags(HTMLParser):
    """Collects every element with its attributes, as a browser would see them."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def hostile_page():
    table = Table(header=[HOSTILE, "n"], rows=[[HOSTILE, "1"]], note=HOSTILE)
    lines = [
        Line(who=HOSTILE, text=f"<ground>{HOSTILE}</ground><objects><region0></objects>{HOSTILE}")
    ]
    card = Card(image=PIXEL, title=HOSTILE, lines=lines, badge=HOSTILE, tone="good")
    blocks = [
        table, Cards(cards=[card]), Plots(plots=[(HOSTILE, PIXEL)]),
        Facts(facts={HOSTILE: HOSTILE}, summary=HOSTILE),
    ]  # fmt: skip
    return render_page(
        HOSTILE, [Section(title=HOSTILE, intro=HOSTILE, blocks=blocks)], intro=HOSTILE
    )


def test_hostile_text_is_text_everywhere():
    page = hostile_page()
    tags = Tags(page).found
    assert not [tag for tag, _ in tags if tag == "script"]
    assert [attrs["src"] for tag, attrs in tags if tag == "img"] == [PIXEL, PIXEL]
    assert not [attrs for _, attrs in tags if any(name.startswith("on") for name in attrs)]
    assert "{{ 7*7 }}" in page  # shown, not evaluated
    assert page.count("&lt;script&gt;") == page.count("alert(&#39;x&#39;)") > 10


def test_the_page_fetches_nothing():
    for tag, attrs in Tags(hostile_page()).found:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:"))


def test_the_same_values_give_the_same_page():
    assert hostile_page() == hostile_page()
    assert curves({"a": [(0, 1.0), (1, 0.5)]}, x="step", y="loss") == curves(
        {"a": [(0, 1.0), (1, 0.5)]}, x="step", y="loss"
    )


def test_region_tags_become_chips():
    prompt = "<image>\n<region0><regionfeat><region1><regionfeat>\n"
    html = chips(prompt + "See <ground>a&b</ground><objects><region7></objects>.")
    assert html == (
        '<span class="stub">image</span><span class="stub">2 regions</span>See '
        '<b class="phrase">a&amp;b</b>'
        f'<span class="chip" style="background:{region_colour(7)}">7</span>.'
    )


@given(st.text(alphabet="<>/&\"'abregionfjcts0123 \n", max_size=60))
def test_chips_make_no_elements_but_their_own(text):
    for tag, attrs in Tags(chips(text)).found:
        assert (tag, set(attrs) - {"style"}) in [("span", {"class"}), ("b", {"class"})]


def test_numbers_are_aligned_right_in_both_tables():
    header, rows = (
        ["run", "F1", "note"],
        [["a", "1.0", "x"], ["longer", "-", "12"], ["b", "55.5", "y"]],
    )
    assert text_table(header, rows).splitlines() == [
        "run       F1  note",
        "------  ----  ----",
        "a        1.0  x",
        "longer     -  12",
        "b       55.5  y",
    ]
    page = render_page("t", [Section(title="s", blocks=[Table(header=header, rows=rows)])])
    assert re.findall(r'<th( class="number")?>(.*?)</th>', page) == [
        ("", "run"),
        (' class="number"', "F1"),
        ("", "note"),
    ]


def test_an_empty_section_says_so():
    assert "Nothing to show." in render_page("t", [Section(title="s", blocks=[])])


def test_images_are_scaled_and_the_input_is_left_alone():
    image = Image.new("RGB", (128, 96), "#808080")
    before = image.tobytes()
    drawn = draw_marks(
        image, [Mark(box=(32, 24, 64, 72), tag="7", colour="#d7263d")], long_side=512
    )
    assert drawn.size == (512, 384)
    assert image.tobytes() == before
    assert drawn.getpixel((128, 200)) == ImageColor.getrgb("#d7263d")  # left edge at 32 * 4
    assert drawn.getpixel((190, 200)) == (128, 128, 128)  # inside stays visible
    assert draw_marks(Image.new("RGB", (1280, 640)), [], long_side=512).size == (512, 256)


def test_tags_keep_apart_and_inside_the_image():
    size = (200, 200)
    pen = ImageDraw.Draw(Image.new("RGB", size))
    taken = []
    for index in range(8):
        taken.append(
            _place(
                pen, str(index), ImageFont.load_default(size=13), (60, 60, 140, 140), size, taken
            )
        )
    for i, a in enumerate(taken):
        assert 0 <= a[0] < a[2] <= 200
        assert 0 <= a[1] < a[3] <= 200
        for b in taken[:i]:
            assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 0), (127, 95, 128, 96), (0, 0, 128, 96), (-5, -5, 300, 300)]
)
@pytest.mark.parametrize("style", [{}, {"dashed": True}, {"faint": True}])
def test_odd_boxes_are_drawn(box, style):
    drawn = draw_marks(
        Image.new("RGB", (128, 96)), [Mark(box=box, tag="a very long tag " * 9, **style)]
    )
    assert np.asarray(drawn).any()


def test_white_text_is_readable_on_every_region_colour():
    def luminance(colour):
        parts = [c / 255 for c in ImageColor.getrgb(colour)]
        parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for colour in PALETTE:
        assert 1.05 / (luminance(colour) + 0.05) >= 4.0
    assert len({region_colour(index) for index in range(len(PALETTE))}) == len(PALETTE)


def test_plots_take_anything_countable():
    for uri in (
        histogram([0, 0], [1, 2, 3], x="x", y="y"),
        histogram(np.array([0, 3, 1, 0]), np.geomspace(1, 16, 5), x="x", y="y", logarithmic=True),
        curves({"a": [(0, 1.0)], "b": [(0, 2.0), (5, 1.0)]}, x="step", y="loss"),
    ):
        assert uri.startswith("data:image/png;base64,")
