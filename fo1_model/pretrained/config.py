"""``config.json`` of a model folder as transformers sees it."""

from dataclasses import asdict
from typing import Any

from transformers import PreTrainedConfig

from fo1_model.batch import TokenIds
from fo1_model.config import FORMAT, MODEL_TYPE, ModelConfig
from fo1_model.errors import SettingError
from fo1_model.vlms import build_family


class FO1Config(PreTrainedConfig):
    """What a folder's ``config.json`` says.

    ``model`` is a ``ModelConfig`` and ``token_ids`` a ``TokenIds``, both as JSON values.
    """

    model_type = MODEL_TYPE

    @classmethod
    def of(cls, config: ModelConfig, token_ids: TokenIds) -> "FO1Config":
        """Return the config of a model and the ids of its processor."""
        ids = {**asdict(token_ids), "new": list(token_ids.new)}
        values: dict[str, Any] = {"model": config.to_dict(), "token_ids": ids, "format": FORMAT}
        return cls(**values)

    @property
    def model_config(self) -> ModelConfig:
        """The model's config as dataclasses.

        Raises:
            SettingError: For a config that is none of a model.
        """
        if not hasattr(self, "model"):
            raise SettingError(
                "this FO1Config describes no model; take one from FO1Config.of or a model folder"
            )
        return ModelConfig.from_dict(self.model)

    @property
    def ids(self) -> TokenIds:
        """The ids as a dataclass."""
        ids: dict[str, Any] = self.token_ids
        return TokenIds(image=ids["image"], region=ids["region"], new=tuple(ids["new"]))

    @property
    def text_config(self) -> PreTrainedConfig:
        """The decoder's config: the model's own object, once there is a model."""
        if "_text_config" not in self.__dict__:
            family = build_family(self.model_config.vlm)
            self.text_config = family.config.get_text_config(decoder=True)
        return self.__dict__["_text_config"]

    @text_config.setter
    def text_config(self, config: PreTrainedConfig) -> None:
        self.__dict__["_text_config"] = config

    def get_text_config(
        self,
        decoder: bool | None = None,  # noqa: ARG002
        encoder: bool | None = None,  # noqa: ARG002
    ) -> PreTrainedConfig:
        """Return `text_config`: the one decoder is all there is."""
        return self.text_config if hasattr(self, "model") else self

    def to_dict(self) -> dict[str, Any]:
        """Return what ``config.json`` holds; the decoder's config follows from it."""
        values = super().to_dict()
        values.pop("_text_config", None)
        return values
