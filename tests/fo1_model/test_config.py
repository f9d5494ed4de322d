import json
from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest

from fo1_model.config import (
    ADDED,
    AuxiliaryConfig,
    ConnectorConfig,
    ModelConfig,
    RegionConfig,
    _from_dict,
    _written,
)
from fo1_model.errors import SettingError
from fo1_model.sizes import SIZES, debug


@pytest.mark.parametrize("name", sorted(SIZES))
def test_to_json_and_back(name):
    config = SIZES[name]()
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_from_dict_is_strict():
    values = debug().to_dict()
    values["region"]["roi_sise"] = 14
    with pytest.raises(SettingError, match=r"ModelConfig\.region has no field roi_sise"):
        ModelConfig.from_dict(values)
    values = debug().to_dict()
    del values["connector"]["num_layers"]
    with pytest.raises(SettingError, match=r"ModelConfig\.connector lacks num_layers"):
        ModelConfig.from_dict(values)


def test_to_dict_shares_nothing_with_the_config():
    config = debug()
    config.to_dict()["vlm"]["config"]["text_config"]["hidden_size"] = 7
    assert config == debug()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RegionConfig(features="both"), "RegionConfig.features='both'.*hybrid"),
        (lambda: RegionConfig(box_frame="original"), "RegionConfig.box_frame='original'"),
        (lambda: RegionConfig(roi_size=0), "RegionConfig.roi_size=0"),
        (lambda: RegionConfig(sampling_ratio=0), "RegionConfig.sampling_ratio=0"),
        (lambda: ConnectorConfig(num_layers=0), "ConnectorConfig.num_layers=0"),
        (lambda: replace(debug(), num_region_tokens=0), "num_region_tokens=0"),
        (lambda: replace(debug(), max_long_side=27), "max_long_side=27"),
        (lambda: replace(debug(), shortest_edge=27), "shortest_edge=27 must be at least 28"),
        (lambda: replace(debug(), shortest_edge=4096), "shortest_edge=4096 is over max_long_side"),
        (lambda: AuxiliaryConfig(kwargs={"embed_dims": [1, 2, 3]}), "embed_dims"),
        (lambda: replace(debug().auxiliary, resize="crop"), "AuxiliaryConfig.resize='crop'"),
        (lambda: replace(debug().auxiliary, drop_path=1.0), r"drop_path=1\.0"),
    ],
)
def test_wrong_settings_name_field_and_value(make, message):
    with pytest.raises(SettingError, match=message):
        make()


def test_configs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        debug().num_region_tokens = 5  # type: ignore[misc]


def test_3b_has_the_numbers_of_the_release():
    config = SIZES["qwen2_5_vl_3b"]()
    text, vision = config.vlm.config["text_config"], config.vlm.config["vision_config"]
    assert (text["hidden_size"], text["num_hidden_layers"], text["vocab_size"]) == (
        2048,
        36,
        151936,
    )
    assert (vision["depth"], vision["hidden_size"], vision["out_hidden_size"]) == (32, 1280, 2048)
    assert sum(config.auxiliary.dims) + 4 * config.region.pyramid_dim == 5888


@dataclass(frozen=True, kw_only=True)
class Grown:
    """A config that got a field later."""

    old: int = 1
    new: int = field(default=0, metadata=ADDED)


def test_a_field_that_came_later_is_written_only_where_it_is_set():
    before = {"old": 1}
    assert _written(Grown()) == before
    assert _written(Grown(new=2)) == {"old": 1, "new": 2}
    assert _from_dict(Grown, before, "Grown") == Grown()
    assert _from_dict(Grown, {"old": 1, "new": 2}, "Grown") == Grown(new=2)
    with pytest.raises(SettingError, match="Grown lacks old"):
        _from_dict(Grown, {}, "Grown")
