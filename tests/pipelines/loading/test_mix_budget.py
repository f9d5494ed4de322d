import dataclasses

import pytest

from pipelines.errors import SettingError
from pipelines.loading.mix_budget import Amount, amounts, budget_table, short, tokens_of
from pipelines.train_config import TrainConfig

CONFIG = TrainConfig(steps=10, batch_size=10, learning_rate=1e-3)
MIX = {"a/detection": 0.8, "a/rejection": 0.2}
TOKENS = {"a/detection": 100.0, "a/rejection": 50.0}


def test_amounts_are_those_of_the_plan() -> None:
    found = amounts(MIX, CONFIG, {"a/detection": 40, "a/rejection": 0}, TOKENS)
    assert found[0] == Amount(
        source="a/detection", share=0.8, available=40, drawn=80, tokens_each=100.0
    )
    assert (found[0].epochs, found[0].tokens) == (2.0, 8000.0)
    assert (found[1].drawn, found[1].epochs) == (20, None)


def test_the_cap_counts_once_all_sizes_are_known() -> None:
    capped = dataclasses.replace(CONFIG, max_repeats=1.0)
    known = amounts(MIX, capped, {"a/detection": 95, "a/rejection": 5}, TOKENS)
    assert [item.drawn for item in known] == [95, 5]
    unknown = amounts(MIX, capped, {"a/detection": 90, "a/rejection": 0}, TOKENS)
    assert [item.drawn for item in unknown] == [80, 20]
    with pytest.raises(SettingError, match="max_repeats=1"):
        amounts(MIX, capped, {"a/detection": 9, "a/rejection": 5}, TOKENS)


def test_tokens_by_hand() -> None:
    ledger = {
        "examples": {"ocr": 2},
        "text_chars": {"ocr": 80},
        "region_tags": {"ocr": 30},
        "pixels": {"ocr": 2 * 28 * 28 * 7},
    }
    assert tokens_of(ledger, "ocr") == (80 / 4 + 30 + 14) / 2
    # nothing known: 391 tokens of a VGA picture, 60 regions of two tokens, 60 of text
    assert tokens_of(ledger, "detection") == 391 + 120 + 60


def test_the_table_shows_shares_repeats_and_the_rejection_share() -> None:
    found = amounts(MIX, CONFIG, {"a/detection": 40, "a/rejection": 0}, TOKENS)
    lines = budget_table(found, nominal={"a/detection": False, "a/rejection": True}).splitlines()
    assert lines[1].split() == ["a/detection", "80.00", "%", "40", "80", "2.00", "100", "8000"]
    assert lines[2].split() == ["a/rejection", "20.00", "%", "?", "20", "?", "~50", "~1000"]
    assert lines[3].split()[:3] == ["all", "100", "%"]
    assert lines[-1] == "rejection: 20.0 % of detection and rejection together"
    assert [short(n) for n in (999, 12345, 2.5e6, 3e9)] == ["999", "12.3k", "2.5M", "3.0G"]
