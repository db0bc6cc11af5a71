"""The settings of a table, Delta or Iceberg, that an output is published to."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Section, Text
from pipeline.storage.uris import UriText, shows_password

CATALOG_SCHEME = "iceberg"  # of URIs of tables: iceberg://CATALOG/NAMESPACE.TABLE

_SECRET_KEY = re.compile(
    r"secret|token|credential|passw|pwd|key|sas|signature|oauth|account-name|header\.", re.IGNORECASE
)
_NAME = re.compile(r"[^.\s]+(?:\.[^.\s]+)+")


class TableConfig(Section):
    """A table over the output's own files: each night is one version of it, and no file is copied."""

    kind: Literal["delta", "iceberg"] = Field(
        description="delta: a Delta table whose root is the output folder; needs maskfleet[delta]. iceberg: a table of "
        "an Iceberg catalog; needs maskfleet[iceberg]."
    )
    name: Text | None = Field(default=None, description="Of an Iceberg table: namespace.table, as its catalog has it.")
    catalog: Text = Field(
        default="default",
        description="Of an Iceberg table: the catalog, as pyiceberg's own configuration calls it (.pyiceberg.yaml, "
        "PYICEBERG_CATALOG__...), where its credentials belong.",
    )
    properties: dict[Text, Text] = Field(
        default={},
        description="Of an Iceberg table: properties of the catalog, such as type, uri and warehouse, before those of "
        "pyiceberg's own configuration. No secrets.",
    )
    keep_replaced: bool = Field(
        default=True,
        description="Whether files stay whose rows are replaced or removed (failed images done again, files joined, "
        "pictures changed or gone), so that earlier versions of the table can be read. They count for nothing in the "
        "output, but who reads data/ without the table finds their rows as well. false: they go, those of earlier "
        "runs too.",
    )

    @field_validator("properties")
    @classmethod
    def _without_secrets(cls, properties: dict[str, str]) -> dict[str, str]:
        for key, value in properties.items():
            text = UriText(value)
            if _SECRET_KEY.search(key) or text.holds_secrets or shows_password(text):
                raise ValueError(
                    f"{key!r} may hold a secret: set it in the environment or in pyiceberg's own configuration "
                    f"(PYICEBERG_CATALOG__<NAME>__{re.sub('[.-]', '_', key).upper()})"
                )
        return properties

    @model_validator(mode="after")
    def _fits_its_kind(self) -> TableConfig:
        if self.kind == "delta":
            if self.name is not None or self.catalog != "default" or self.properties:
                raise ValueError("name, catalog, properties are of Iceberg tables; a Delta table is the output folder")
        elif self.name is None or not _NAME.fullmatch(self.name):
            raise ValueError("name must be namespace.table, as the Iceberg catalog has it")
        return self
