"""peft and transformers' Trainer on our model."""

import copy

import peft
import pytest
import torch
from transformers import Trainer, TrainingArguments

from fo1_model.model import FO1Model
from tests.fo1_model.pretrained.conftest import regional

TARGETS = ["q_proj", "v_proj"]


def settings(**changes):
    return peft.LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS, **changes)


def lively(module):
    """Adapters start at zero and would change nothing."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def batch(processor, sample):
    return processor.collate([sample(84, 56, 2, "None"), sample(answer="There are 3.")])


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_fresh_adapters_change_nothing_and_lively_ones_what_their_formula_says(
    model, processor, batch, task
):
    """In both ways of calling, whatever peft's wrapper makes of the arguments."""
    plain = copy.deepcopy(model)
    wrapped = peft.get_peft_model(model, settings(task_type=task))
    inputs = processor(*regional([(84, 56, 2)], "None"), for_generation=False)
    with torch.no_grad():
        assert torch.equal(wrapped(batch).loss_sum, plain(batch).loss_sum)
        assert torch.equal(wrapped(**inputs).logits, plain(**inputs).logits)
    lively(wrapped)
    scale = 4 / 2
    with torch.no_grad():
        for name, module in wrapped.named_modules():
            if hasattr(module, "lora_A"):
                own = plain.get_submodule(name.removeprefix("base_model.model."))
                own.weight += module.lora_B.default.weight @ module.lora_A.default.weight * scale
        torch.testing.assert_close(wrapped(batch).loss_sum, plain(batch).loss_sum)
        torch.testing.assert_close(wrapped(**inputs).loss, plain(**inputs).loss)
    prompt = processor(*regional([(84, 56, 2)]))
    rows = wrapped.generate(**prompt, max_new_tokens=5)
    assert torch.equal(rows, plain.generate(**prompt, max_new_tokens=5))
    merged = wrapped.merge_and_unload()
    assert isinstance(merged, FO1Model)
    assert torch.equal(rows, merged.generate(**prompt, max_new_tokens=5))


def test_only_adapters_train_and_are_stored(model, processor, tmp_path):
    wrapped = peft.get_peft_model(model, settings())
    trained = [name for name, p in wrapped.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    before = {name: value.clone() for name, value in wrapped.named_parameters()}
    inputs = processor(*regional([(84, 56, 2)], "None"), for_generation=False)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], 0.1)
    wrapped.train()
    for _ in range(2):
        wrapped(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {n for n, value in wrapped.named_parameters() if not torch.equal(value, before[n])}
    assert changed == set(trained)
    wrapped.save_pretrained(tmp_path / "adapter")
    plain = copy.deepcopy(wrapped).unload()
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(again(**inputs).loss, wrapped.eval()(**inputs).loss)


def test_adapters_of_transformers_are_stored_alone(model, processor, tmp_path):
    plain = copy.deepcopy(model)
    model.add_adapter(settings())
    lively(model)
    model.save_pretrained(tmp_path / "adapter")
    stored = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= stored
    assert "model.safetensors" not in stored
    plain.load_adapter(tmp_path / "adapter")
    inputs = processor(*regional([(84, 56, 2)], "None"), for_generation=False)
    with torch.no_grad():
        assert torch.equal(plain(**inputs).loss, model(**inputs).loss)


def test_a_trainer_of_transformers_trains_and_saves(model, processor, tmp_path):
    """Accumulated over two batches of different length, the loss is the mean over all tokens."""
    given = [regional([(84, 56, 2)], "There are 3."), regional([(60, 84, 1)], "None")]

    def collate(rows):
        (row,) = rows
        return processor(*given[row["index"]], for_generation=False)

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        max_steps=1,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        remove_unused_columns=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    both = processor(*(list(part) for part in zip(*given, strict=True)), for_generation=False)
    with torch.no_grad():
        expected = model.eval()(**both).loss
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=[{"index": 0}, {"index": 1}],
    )
    result = trainer.train()
    assert result.training_loss == pytest.approx(float(expected), rel=1e-4)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = FO1Model.from_pretrained(tmp_path / "saved")
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
