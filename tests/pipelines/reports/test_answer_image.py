import numpy as np
import pytest
import torch
from PIL import ImageColor

from dataset_builders.drawn_world.drawing import draw_scene
from fo1_model.checkpoint import new_model
from fo1_model.detectors import Detections, with_all_pixels
from fo1_model.grammar import parse
from fo1_model.sizes import SIZES
from pipelines.errors import SettingError
from pipelines.reports.answer_image import draw_answer, predict_image, question_for
from pipelines.reports.drawing import region_colour


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return new_model(SIZES["debug"](), 0)


class Fixed:
    prepare = staticmethod(with_all_pixels)

    def detect(self, batch):
        boxes = np.array([[1, 1, 30, 30], [5, 5, 60, 60]], np.float32)
        return [Detections(boxes=boxes, scores=np.array([0.9, 0.4], np.float32)) for _ in batch]


def test_one_image_is_answered_over_boxes_or_a_detector(model):
    image = draw_scene((1, 2)).image
    boxes = np.array([[3, 3, 40, 40], [20, 20, 90, 90]], np.float32)
    given_boxes = predict_image(
        *model, image, question_for(["red circle"]), boxes=boxes, max_new_tokens=3
    )
    assert given_boxes.scores is None
    assert given_boxes.annotated.size >= image.size
    found = predict_image(*model, image, "Find it.", detector=Fixed(), max_new_tokens=3)
    assert found.boxes.tolist() == [[1, 1, 30, 30], [5, 5, 60, 60]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.4])
    none = predict_image(
        *model, image, "Find it.", boxes=np.zeros((0, 4), np.float32), max_new_tokens=3
    )
    assert none.boxes.shape == (0, 4)
    with pytest.raises(SettingError, match="either boxes or a detector"):
        predict_image(*model, image, "Find it.")
    with pytest.raises(SettingError, match="either boxes or a detector"):
        predict_image(*model, image, "Find it.", boxes=boxes, detector=Fixed())


def test_an_answer_can_be_held_to_the_language_and_to_names(model):
    image = draw_scene((1, 2)).image
    boxes = np.array([[3, 3, 40, 40], [20, 20, 90, 90]], np.float32)
    settings = {"boxes": boxes, "max_new_tokens": 20}
    held = predict_image(
        *model, image, "Find it.", **settings, constrained=True, names=["red circle"]
    )
    assert held.answer.parsed.problem is None
    assert held.answer.finished
    assert {text for text, _ in held.answer.parsed.phrases} <= {"red circle"}
    with pytest.raises(ValueError, match="constrained"):
        predict_image(*model, image, "Find it.", **settings, names=["red circle"])


def test_names_become_the_question_of_the_release():
    assert question_for(["cat", " hot dog "]) == (
        "Please detect cat; hot dog in this image. Answer the question with object indexes."
    )
    for wrong in ([], [" "], ["<region0>"]):
        with pytest.raises(SettingError, match="names"):
            question_for(wrong)


def test_the_image_shows_what_is_named_and_hints_at_the_rest():
    image = draw_scene((1, 2)).image
    boxes = np.array([[10, 10, 60, 60], [70, 70, 120, 120]], np.float32)
    named = draw_answer(image, boxes, parse("<ground>a</ground><objects><region1></objects>", 2))
    nothing = draw_answer(image, boxes, parse("None", 2))
    factor = named.width / image.width
    edge = (round(70 * factor), round(95 * factor))
    assert named.getpixel(edge) == ImageColor.getrgb(region_colour(1))
    # White, but seen through.
    assert nothing.getpixel(edge) not in (ImageColor.getrgb(region_colour(1)), (255, 255, 255))
    changed = (np.asarray(named).astype(int) - np.asarray(nothing)).any(axis=2)
    assert not changed[: int(60 * factor), : int(60 * factor)].any()
