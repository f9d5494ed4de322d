"""OPN's warm start: boxes and scores of OmDet-Turbo asked for "object", and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForZeroShotObjectDetection,
    OmDetTurboConfig,
    OmDetTurboForObjectDetection,
)

from fo1_model.detectors import DetectorInput, TextPromptedConfig, build_detector
from fo1_model.errors import SettingError
from fo1_model.opn.config import OPN_SIZES
from fo1_model.opn.network import OPN, load_opn, save_opn
from fo1_model.opn.warm_start import (
    OF_OTHER_PARTS,
    copy_weights,
    opn_config,
    read_omdet_config,
    warm_start,
    warm_start_config,
)
from tests.fo1_model.detectors.small_detectors import TEXT, saved, square, tokenizer
from tests.ties import assert_same_detections

# The fields of omlab/omdet-turbo-swin-tiny-hf that are not the library's defaults.
RELEASED_CONFIG = {
    "model_type": "omdet-turbo",
    "backbone": "swin_tiny_patch4_window7_224",
    "backbone_config": None,
    "backbone_kwargs": {"always_partition": True, "img_size": 640, "out_indices": [1, 2, 3]},
    "backbone_image_size": 640,
    "d_model": 256,
    "use_timm_backbone": True,
    "text_config": {"model_type": "clip_text_model", "eos_token_id": 49407},
}
RELEASED_PROCESSOR = {
    "image_processor_type": "DetrImageProcessor",
    "do_normalize": True,
    "do_rescale": False,
    "image_mean": [123.675, 116.28, 103.53],
    "image_std": [58.395, 57.12, 57.375],
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 640, "width": 640},
}


def one_token() -> hf.PreTrainedTokenizerFast:
    """A whole text is one token, without start and end."""
    words = {"[PAD]": 0, "[UNK]": 1, "object": 2, "Detect object.": 3}
    whole = Tokenizer(models.WordLevel(words, "[UNK]"))
    return hf.PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="[PAD]", unk_token="[UNK]")


def omdet_config(**changes: Any) -> OmDetTurboConfig:
    text = hf.CLIPTextConfig(
        hidden_size=48,
        max_position_embeddings=77,
        projection_dim=48,
        eos_token_id=102,
        bos_token_id=101,
        **TEXT,
    )
    backbone = {
        "model_type": "timm_backbone",
        "backbone": "test_convnext2",
        "out_indices": [1, 2, 3],
    }
    values = {
        "backbone_config": backbone,
        "text_config": text,
        "apply_layernorm_after_vision_backbone": False,
        "text_projection_in_dim": 48,
        "text_projection_out_dim": 48,
        "class_embed_dim": 48,
        "task_encoder_hidden_dim": 96,
        "num_queries": 20,
        "encoder_hidden_dim": 32,
        "decoder_hidden_dim": 32,
        "vision_features_channels": [32, 32, 32],
        "encoder_in_channels": [64, 96, 128],
        "encoder_attention_heads": 2,
        "encoder_dim_feedforward": 64,
        "decoder_num_heads": 2,
        "decoder_num_layers": 2,
        "decoder_dim_feedforward": 64,
        "image_size": 64,
    }
    return OmDetTurboConfig(**(values | changes))


def write(folder: Path, words: Callable[[], Any]) -> Path:
    """A small OmDet-Turbo whose batch statistics differ too."""
    processor = hf.OmDetTurboProcessor(hf.DetrImageProcessor(size=square(64)), words())
    saved(AutoModelForZeroShotObjectDetection, lambda: (omdet_config(), processor), folder)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if "running" in name:
            tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("omdet"), lambda: tokenizer(77))


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_exists", unreachable)


@pytest.fixture
def released(tmp_path: Path, no_hub: None) -> Path:
    """The release's settings, without its weights."""
    (tmp_path / "config.json").write_text(json.dumps(RELEASED_CONFIG))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(RELEASED_PROCESSOR))
    for name in ("model.safetensors", "vocab.json"):
        (tmp_path / name).touch()
    return tmp_path


def theirs(folder: Path) -> tuple[OmDetTurboForObjectDetection, Any, torch.Tensor]:
    """The model, its outputs for "object" on two noise images, and those images."""
    model = OmDetTurboForObjectDetection.from_pretrained(folder).eval()
    processor = hf.AutoProcessor.from_pretrained(folder)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    blank = torch.zeros(3, 64, 64)
    inputs = processor(
        images=[blank, blank], text=[["object"]] * 2, return_tensors="pt", do_rescale=False
    )
    inputs.pop("pixel_mask")
    with torch.no_grad():
        return model, model(**(inputs | {"pixel_values": pixels})), pixels


def test_starts_as_omdet_turbo_asked_for_object(tmp_path: Path) -> None:
    """All outputs, where the task is one token, so that its mean is the token."""
    folder = write(tmp_path, one_token)
    _, expected, pixels = theirs(folder)
    model = warm_start(folder).eval()
    with torch.no_grad():
        for prompt in (0, 1):
            outputs = model(pixels, torch.tensor([prompt, prompt]))
            close = {"rtol": 0, "atol": 1e-5}
            torch.testing.assert_close(
                outputs.logits[-1], expected.decoder_class_logits[..., 0], **close
            )
            torch.testing.assert_close(outputs.boxes[-1], expected.decoder_coord_logits, **close)
            torch.testing.assert_close(
                outputs.encoder_logits, expected.encoder_class_logits[..., 0], **close
            )
            torch.testing.assert_close(
                outputs.encoder_boxes, expected.encoder_coord_logits, **close
            )
    assert expected.decoder_class_logits.std() > 0.1
    assert (expected.decoder_coord_logits.std((0, 1)) > 0.01).all()
    for earlier, later in (
        (outputs.encoder_boxes, outputs.boxes[0]),
        (outputs.boxes[0], outputs.boxes[1]),
    ):
        assert (earlier - later).abs().max() > 0.01  # each layer moves the boxes


def test_task_tokens_become_their_mean(folder: Path) -> None:
    """With several tokens only the decoder differs: the encoder's choice does not see the task."""
    omdet, expected, pixels = theirs(folder)
    model = warm_start(folder).eval()
    words = tokenizer(77)(["Detect object."], return_tensors="pt")["input_ids"]
    assert words.shape == (1, 5)
    with torch.no_grad():
        tokens = omdet.language_backbone.model(words).last_hidden_state[0]
        outputs = model(pixels)
    torch.testing.assert_close(model.task_prompts, tokens.mean(0).expand(2, -1))
    torch.testing.assert_close(outputs.encoder_logits, expected.encoder_class_logits[..., 0])
    torch.testing.assert_close(outputs.encoder_boxes, expected.encoder_coord_logits)
    assert not torch.allclose(outputs.logits[-1], expected.decoder_class_logits[..., 0], atol=1e-5)
    assert not torch.allclose(outputs.boxes[-1], expected.decoder_coord_logits, atol=1e-5)


def test_what_is_new_starts_afresh_and_alike(folder: Path) -> None:
    torch.manual_seed(0)
    one = warm_start(folder)
    torch.manual_seed(1)
    two = warm_start(str(folder))
    assert one.training
    assert one.config == warm_start_config(folder)
    assert one.config.normalization == "batch"
    assert one.noised_query.abs().sum() > 0
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name


def test_a_start_is_an_opn_like_any_other(folder: Path, tmp_path: Path) -> None:
    model = warm_start(folder)
    save_opn(model, tmp_path)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        load_opn(tmp_path)(pixels).boxes, model.eval()(pixels).boxes, rtol=0, atol=0
    )


def test_weights_in_several_files(folder: Path, tmp_path: Path) -> None:
    OmDetTurboForObjectDetection.from_pretrained(folder).save_pretrained(
        tmp_path, max_shard_size="500KB"
    )
    hf.AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    expected = warm_start(folder).state_dict()
    for name, tensor in warm_start(tmp_path).state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    # As a detector too.
    image = DetectorInput(image_id="a", image=Image.new("RGB", (90, 60), (200, 30, 30)))
    detectors = [build_detector(TextPromptedConfig(), str(place)) for place in (folder, tmp_path)]
    ours, theirs = (detector.detect([detector.prepare(image)])[0] for detector in detectors)
    assert_same_detections(ours, theirs)
    assert len(ours.boxes)
    shards[1].unlink()
    with pytest.raises(SettingError, match=shards[1].name):
        warm_start(tmp_path)


def test_the_release_has_the_sizes_of_swin_tiny(released: Path) -> None:
    """And every one of its tensors finds its place (shapes only, no weights)."""
    config = warm_start_config(released)
    assert config == OPN_SIZES["swin_tiny"]()
    with torch.device("meta"):
        model, omdet = OPN(config), OmDetTurboForObjectDetection(read_omdet_config(released))
    copy_weights(omdet, model)
    del omdet.decoder.layers[5].norm3
    with pytest.raises(ValueError, match=r"decoder\.layers\.5\.norm3"):
        copy_weights(omdet, model)


@pytest.mark.usefixtures("no_hub")
def test_files_of_before_transformers_5(folder: Path, tmp_path: Path) -> None:
    """As the release: fields of its own for the backbone, a longer name for the text tower."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    values = json.loads((folder / "config.json").read_text())
    values |= {"backbone_config": None, "backbone": "test_convnext2", "use_timm_backbone": True}
    values["backbone_kwargs"] = {"out_indices": [1, 2, 3]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    tower = "language_backbone.model."
    tensors = {
        name.replace(tower, f"{tower}text_model."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected = warm_start(folder).state_dict()
    for name, tensor in warm_start(tmp_path).state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    # As a detector too.
    image = DetectorInput(image_id="a", image=Image.new("RGB", (90, 60), (200, 30, 30)))
    detectors = [build_detector(TextPromptedConfig(), str(place)) for place in (folder, tmp_path)]
    ours, theirs = (detector.detect([detector.prepare(image)])[0] for detector in detectors)
    assert_same_detections(ours, theirs)
    assert len(ours.boxes)


def changed(value: Any) -> Any:
    if value is None:
        return 64
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return {"silu": "relu", "gelu": "relu", "relu": "gelu", "cosine": "dot"}[value]
    if isinstance(value, list | tuple):
        return [2 * one for one in value]
    return 2 * value


@pytest.mark.parametrize("field", sorted(set(OmDetTurboConfig.__annotations__) - OF_OTHER_PARTS))
def test_no_setting_is_passed_over(field: str) -> None:
    """Each, changed alone, is taken over, or something is refused that contradicts it."""
    processor, config = hf.DetrImageProcessor(), omdet_config()
    before = opn_config(config, processor)
    if field == "backbone_config":
        config.backbone_config.freeze_batch_norm_2d = True
    else:
        setattr(config, field, changed(getattr(config, field)))
    try:
        assert opn_config(config, processor) != before
    except SettingError as error:
        assert "OmDet-Turbo " in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (64, 96)}, "square"),
        (
            {"backbone_config": {"model_type": "resnet", "out_features": ["stage2"]}},
            "backbone_config.model_type",
        ),
        (
            {
                "backbone_config": {
                    "model_type": "timm_backbone",
                    "backbone": "test_convnext2",
                    "out_indices": [2, 3],
                }
            },
            "exactly three",
        ),
    ],
)
def test_other_designs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        opn_config(omdet_config(**changes), hf.DetrImageProcessor())


def test_normalisation_is_per_unit() -> None:
    config, usual = omdet_config(image_size=(64, 64)), hf.DetrImageProcessor()
    raw = hf.DetrImageProcessor(
        do_rescale=False, image_mean=[123.675, 116.28, 103.53], image_std=[51, 51, 51]
    )
    assert opn_config(config, usual).pixel_mean == (0.485, 0.456, 0.406)
    assert opn_config(config, raw).pixel_mean == (0.485, 0.456, 0.406)
    assert opn_config(config, raw).pixel_std == (0.2, 0.2, 0.2)
    assert opn_config(config, raw).image_size == 64
    with pytest.raises(SettingError, match="do_normalize"):
        opn_config(config, hf.DetrImageProcessor(do_normalize=False))


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "vocab.json", "model.safetensors"]
)
def test_missing_files_are_named(released: Path, name: str) -> None:
    (released / name).unlink()
    for start in (warm_start, warm_start_config):
        with pytest.raises(SettingError, match=f"{name}.* is missing"):
            start(released)


def test_pickles_are_not_read(released: Path) -> None:
    (released / "model.safetensors").rename(released / "pytorch_model.bin")
    with pytest.raises(
        SettingError, match=r"model\.safetensors.* is missing; pickles are not read"
    ):
        warm_start(released)


def test_other_models_and_broken_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    lost = tensors.pop("decoder.layers.1.norm3.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingError, match=r"decoder\.layers\.1\.norm3\.weight"):
        warm_start(tmp_path)
    tensors["decoder.layers.1.norm3.weight"] = torch.cat([lost, lost])
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SettingError, match=r"decoder\.layers\.1\.norm3\.weight"):
        warm_start(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr"}))
    with pytest.raises(SettingError, match="not an omdet-turbo"):
        warm_start(tmp_path)
