"""JSON schemas with numbers that doubles hold, because llguidance computes with doubles.

Bounds are moved inwards to the next double, so that every number that fits them fits the schema. A constant that no
double holds is an error. Values of `format` that llguidance does not know are left out: they are annotations.
"""

import math
from collections.abc import Mapping
from typing import Any

_EXACT = 2**53
"""All integers up to this one are doubles."""
_LARGEST = int(math.nextafter(2.0**63, 0.0))
"""llguidance computes ranges in 64-bit integers, and fails at -2**63."""
_BY_NAME = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
"""Keywords whose values map names to schemas."""
_ANNOTATIONS = {"default", "example", "examples"}
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
"""Those that llguidance knows; it refuses all others of texts."""
_LOWER = {"minimum", "exclusiveMinimum"}
_UPPER = {"maximum", "exclusiveMaximum"}
_EXCLUSIVE = (("exclusiveMinimum", "minimum", 1, max), ("exclusiveMaximum", "maximum", -1, min))


def adapt(schema: Any) -> Any:
    """A parsed schema with bounds that doubles hold. Raises ValueError for a constant that cannot be exact."""
    if isinstance(schema, list):
        return [adapt(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    adapted = {
        keyword: _adapt(keyword, value)
        for keyword, value in schema.items()
        if keyword != "format" or not isinstance(value, str) or value in _FORMATS
    }
    for exclusive, inclusive, direction, innermost in _EXCLUSIVE:
        bound = adapted.get(exclusive)
        # llguidance adds 1 to it, which a double may lose.
        if isinstance(bound, int | float) and _EXACT <= abs(bound) <= _LARGEST:
            del adapted[exclusive]
            bound = int(math.nextafter(bound, direction * math.inf))
            adapted[inclusive] = innermost(bound, adapted.get(inclusive, bound))
    return adapted


def _adapt(keyword: str, value: Any) -> Any:
    if keyword in _BY_NAME and isinstance(value, Mapping):
        return {name: adapt(one) for name, one in value.items()}
    if keyword in ("const", "enum"):
        _check_constant(value)
    elif keyword in _LOWER | _UPPER and type(value) in (int, float):
        return _bound(value, is_upper=keyword in _UPPER)
    elif keyword not in _ANNOTATIONS:
        return adapt(value)
    return value


def _check_constant(value: Any) -> None:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            _check_constant(one)
    elif type(value) is int and abs(value) > _EXACT:
        raise ValueError(f"the constant {value} is beyond the integers that can be followed exactly (up to 2**53)")


def _bound(value: float, is_upper: bool) -> float:
    """The next double inside a bound, within 64 bits; the bound itself if there is none."""
    if not abs(value) > _EXACT:
        return value
    inwards = -1 if is_upper else 1
    if value * inwards < -_LARGEST:
        return -inwards * _LARGEST
    if abs(value) > _LARGEST:
        return value
    nearest = int(float(value))
    return nearest if (nearest - value) * inwards >= 0 else int(math.nextafter(nearest, inwards * math.inf))
