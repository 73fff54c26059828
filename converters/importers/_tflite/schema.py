"""What the enumerations of the TFLite schema stand for, by name."""

from __future__ import annotations

from typing import Any, Final

import ml_dtypes
import numpy as np
from ai_edge_litert import schema_py_generated as generated

__all__ = ["BUILTINS", "DTYPES", "OPTION_TYPES", "OPTION_TYPES_2", "PACKED", "TENSOR_TYPES", "generated"]


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if not name.startswith("_")}


#: Operators, options and element types by their numbers.
BUILTINS: Final = _names(generated.BuiltinOperator)
OPTION_TYPES: Final = _names(generated.BuiltinOptions)
OPTION_TYPES_2: Final = _names(generated.BuiltinOptions2)
TENSOR_TYPES: Final = _names(generated.TensorType)

#: How numpy holds the elements; packed ones are unpacked, one to a byte.
DTYPES: Final[dict[str, Any]] = {
    "FLOAT32": np.dtype(np.float32),
    "FLOAT16": np.dtype(np.float16),
    "FLOAT64": np.dtype(np.float64),
    "BFLOAT16": np.dtype(ml_dtypes.bfloat16),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "BOOL": np.dtype(np.bool_),
    "INT4": np.dtype(np.int8),
    "INT2": np.dtype(np.int8),
    "UINT4": np.dtype(np.uint8),
    "COMPLEX64": np.dtype(np.complex64),
}
#: Bits of an element where several share a byte, the first in the lowest bits.
PACKED: Final = {"INT4": 4, "UINT4": 4, "INT2": 2}
