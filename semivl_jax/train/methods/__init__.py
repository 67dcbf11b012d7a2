"""Methods: one file each. `METHODS` lists them by the name that `config.method.name` takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from semivl_jax.train.methods.base import Method
from semivl_jax.train.methods.co2s import Co2S
from semivl_jax.train.methods.cw_bass import CWBass, CWBassSemiVL, CWBassV1
from semivl_jax.train.methods.fixmatch import FixMatch
from semivl_jax.train.methods.mgd import MGD
from semivl_jax.train.methods.ripu import Ripu, RipuSemiVL
from semivl_jax.train.methods.semi_ovs import SemiOVS, SemiOVSSemiVL
from semivl_jax.train.methods.semivl import SemiVL
from semivl_jax.train.methods.supervised import Supervised
from semivl_jax.train.methods.unimatch import UniMatch
from semivl_jax.train.methods.unimatch_v2 import UniMatchV2
from semivl_jax.train.methods.zegclip import ZegCLIP

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "fixmatch": FixMatch,
    "unimatch": UniMatch,
    "unimatch_v2": UniMatchV2,
    "semivl": SemiVL,
    "zegclip": ZegCLIP,
    "cw_bass": CWBass,
    "cw_bass_v1": CWBassV1,
    "cw_bass_semivl": CWBassSemiVL,
    "co2s": Co2S,
    "mgd": MGD,
    "semi_ovs": SemiOVS,
    "semi_ovs_semivl": SemiOVSSemiVL,
    "ripu": Ripu,
    "ripu_semivl": RipuSemiVL,
}
"""A new method is a file in this folder and a line here."""


def defaults(name: str) -> dict[str, Any]:
    """`name` and the fields of a method with their default values, as `config.method` holds them.

    Raises:
      ValueError: there is no such method.
    """
    fields = dataclasses.fields(_method(name))
    return {"name": name} | {field.name: field.default for field in fields}


def create(settings: Mapping[str, Any]) -> Method:
    """The method that `config.method` describes.

    Raises:
      ValueError: an unknown method, a field that it does not have, or a value that it does not take.
    """
    settings = dict(settings)
    name = settings.pop("name")
    known = [field.name for field in dataclasses.fields(_method(name))]
    unknown = [field for field in settings if field not in known]
    if unknown:
        raise ValueError(
            f"method.{unknown[0]} is no field of the method {name!r}, which has {', '.join(known)}"
        )
    return _method(name)(**settings)


def _method(name: str) -> type[Method]:
    if name not in METHODS:
        raise ValueError(f"method.name = {name!r} is unknown; choose one of {', '.join(METHODS)}")
    return METHODS[name]
