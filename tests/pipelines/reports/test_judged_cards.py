import numpy as np

from dataset_builders.drawn_world.drawing import draw_scene
from dataset_builders.drawn_world.write import encode_jpeg
from fo1_model.grammar import region_prompt
from pipelines.evaluation.joined_cases import make_case
from pipelines.reports.drawing import MISSED, OFFERED, RIGHT, WRONG, region_colour
from pipelines.reports.judged_cards import grounded_text, is_right, judged_cards, judged_marks
from pipelines.schemas import RegionExample
from tests.pipelines.evaluation.small_evaluation import prediction_row, true_answer

IMAGE = encode_jpeg(draw_scene((1, 2)))
# Region 3 covers region 0 with IoU 0.9: a double of it. Region 2 stands for nothing.
BOXES = np.array([[0, 0, 20, 20], [30, 30, 60, 60], [70, 70, 90, 90], [0, 0, 20, 18]], np.float32)


def example(task="detection", targets=None, question="Find a.", sample_id="s1"):
    true = (
        [{"text": "a", "regions": [0], "boxes": [[0, 0, 20, 20]]}] if targets is None else targets
    )
    return RegionExample(
        sample_id=sample_id,
        dataset="d",
        task=task,
        image_id="i",
        width=128,
        height=128,
        boxes=BOXES,
        scores=(0.9, 0.8, 0.7, 0.6),
        box_sources=("proposal",) * 4,
        messages=({"role": "user", "content": f"<image>\n{region_prompt(4)}\n{question}"},),
        targets=tuple(true),
    )


def case(asked, text):
    return make_case(asked, prediction_row(asked, text), None)


def say(phrase, *regions):
    return f"<ground>{phrase}</ground><objects>{''.join(f'<region{r}>' for r in regions)}</objects>"


def test_a_reader_accepts_a_double_of_the_region_but_not_both():
    asked = example()
    assert is_right(case(asked, say("a", 0)))
    assert is_right(case(asked, say("a", 3)))
    assert not is_right(case(asked, say("a", 0, 3)))
    assert not is_right(case(asked, say("b", 0)))
    assert not is_right(case(asked, say("a", 0, 77)))  # an unknown region is a problem


def test_counting_and_naming_need_their_words():
    none = [{"text": "There are 0.", "regions": [], "boxes": []}]
    assert is_right(case(example("counting", none), "There are 0."))
    assert not is_right(case(example("counting", none), "There are 1."))
    name = [{"text": "red circle", "regions": [], "boxes": []}]
    assert is_right(case(example("region_name", name), " Red circle"))
    assert not is_right(case(example("region_name", name), "blue circle"))


def test_marks_show_the_verdict_on_every_box():
    true = [{"text": "a", "regions": [0], "boxes": [[0, 0, 20, 20], [100, 100, 120, 120]]}]
    asked = example(targets=true, question="Beside <region2>, find a.")
    marks = {tuple(m.box): m for m in judged_marks(case(asked, say("a", 0, 1)), asked)}
    assert (marks[0, 0, 20, 20].colour, marks[0, 0, 20, 20].tag) == (RIGHT, "0 a")
    assert (marks[30, 30, 60, 60].colour, marks[30, 30, 60, 60].tag) == (WRONG, "1 a")
    assert (marks[100, 100, 120, 120].colour, marks[100, 100, 120, 120].dashed) == (MISSED, True)
    assert (marks[70, 70, 90, 90].colour, marks[70, 70, 90, 90].tag) == (region_colour(2), "2")
    assert (marks[0, 0, 20, 18].colour, marks[0, 0, 20, 18].faint) == (OFFERED, True)


def test_cards_are_chosen_the_same_way_whatever_the_order():
    examples = [example(sample_id=f"s{i}") for i in range(8)]
    absent = [
        example("rejection", [{"text": "None", "regions": [], "boxes": []}], sample_id=f"r{i}")
        for i in range(4)
    ]
    cases = [case(e, true_answer(e) if i % 2 else say("b", 1)) for i, e in enumerate(examples)]
    cases += [case(absent[0], "None"), *(case(e, say("c", 2)) for e in absent[1:])]
    pairs = [(e, IMAGE) for e in [*examples, *absent]]
    groups = judged_cards(cases, pairs, right=3, wrong=2)
    assert {heading: len(cards) for heading, cards in groups.items()} == {
        "Right answers": 3,
        "Wrong answers": 2,
        "Asked for absent things only": 2,
    }
    assert groups == judged_cards(cases[::-1], pairs[::-1], right=3, wrong=2)
    assert {card.badge for card in groups["Right answers"]} == {"right"}
    assert any(line.who == "truth" for line in groups["Wrong answers"][0].lines)


def test_truth_is_written_with_what_no_proposal_covers():
    assert grounded_text([("a b", [3, 1], 3), ("", [2], 1), ("c", [], 1)]) == (
        "<ground>a b</ground><objects><region1><region3></objects> (1 without a proposal)\n"
        "<region2>\nc (1 without a proposal)"
    )
