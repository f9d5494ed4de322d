"""Settings of a training that are refused, and its schedule; field docstrings that --help shows."""

from __future__ import annotations

import ast
import inspect
import itertools
from typing import Any

import pytest

from pipelines.errors import SettingError
from pipelines.train_config import TrainConfig
from pipelines.training.learners import FO1Learner, OPNLearner


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": -1}, "steps=-1"),
        ({"warmup_steps": 11}, "warmup_steps=11"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"precision": "fp16"}, "precision='fp16'"),
        ({"zero_stage": 4}, "zero_stage=4"),
        ({"gradient_clip": -1.0}, "gradient_clip"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"ema_decay": 0.9, "zero_stage": 3}, "zero_stage 0, 1 or 2"),
        ({"validate_every": -1}, "validate_every=-1"),
        ({"precision": "bf16", "zero_stage": 0}, "use zero_stage 1"),
        (
            {"offload_optimizer": True, "zero_stage": 0},
            "offload_optimizer: use zero_stage 1, 2 or 3",
        ),
        ({"keep_last": 0}, "keep_last=0"),
        ({"keep_best": "loss", "validate_every": 5}, "use min:NAME or max:NAME"),
        ({"keep_best": "min:loss", "validate_every": 5}, "such as min:validation/loss"),
        ({"keep_best": "min:validation/loss"}, "set validate_every too"),
        ({"max_skipped_steps": -1}, "max_skipped_steps=-1"),
        ({"spike_factor": 1.0}, "spike_factor=1.0: use more than 1"),
    ],
)
def test_bad_configs(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        TrainConfig(**{"steps": 10, "batch_size": 2, "learning_rate": 1.0, **change})


def test_schedule() -> None:
    """Warm-up peaks in its last step; the cosine is half way in the middle, then at its floor."""
    config = TrainConfig(
        steps=14, batch_size=1, learning_rate=1.0, warmup_steps=4, final_learning_rate=0.2
    )
    assert [config.schedule(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert config.schedule(9) == pytest.approx(0.6)
    assert config.schedule(14) == pytest.approx(0.2)


@pytest.mark.parametrize("config", [TrainConfig, FO1Learner, OPNLearner])
def test_each_field_says_in_a_line_what_it_means(config: type) -> None:
    """The command's help shows the first line of what stands below a field."""
    (definition,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(definition, ast.ClassDef)
    body = definition.body
    fields = [
        (node, after)
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation)
    ]
    assert fields
    for field, after in fields:
        assert isinstance(after, ast.Expr), ast.unparse(field)
        first = ast.literal_eval(after.value).splitlines()[0]
        assert first.endswith("."), first
        assert len(first) <= 90, first
