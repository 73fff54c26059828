"""Convert a model to another version of the ONNX operator set."""

from __future__ import annotations

import dataclasses
import re
from typing import Final

import onnx
import onnx.version_converter
import onnx_ir as ir

from graphopt.analyses import shapes
from graphopt.errors import InputError, UnsupportedError
from graphopt.graph import Names, describe
from graphopt.io import check, structure_proto
from graphopt.options import option
from graphopt.passes.interop._opset_adapters import Adapter, CannotAdaptError, Context, adapter_for
from graphopt.passes.interop._opset_transplant import nodes_of, number, transplant
from graphopt.registry import Pass, PassResult, register

__all__ = ["ConvertOpset"]

#: Older models mean other things by the same operators, and onnxruntime cannot run them to compare.
_OLDEST: Final = 7


@register
@dataclasses.dataclass(eq=False)
class ConvertOpset(Pass):
    """Convert the model to another version of the standard operator set, up or down.

    The work is done by onnx's version converter on the model's structure (weights stay where they are), with
    adapters of our own for Softmax, LogSoftmax, Hardmax, Resize, Upsample, Clip and Pad, which it gets wrong,
    and going down for operators of which the node uses nothing new. Names, metadata and declared
    types stay, and the IR version is raised to what the new opset needs.

    The model is refused, and left as it was, when it has functions, comes from an opset below 7, or holds an
    operator that the target cannot express; the error names it.
    """

    name = "convert-opset"
    source = "onnx.version_converter"

    target: int = option(
        21,
        help="Opset of the standard domain to convert to.",
        min=_OLDEST,
        max=onnx.defs.onnx_opset_version(),
    )

    def call(self, model: ir.Model) -> PassResult:
        """Convert the model.

        Raises:
            UnsupportedError: Something in the model cannot be converted; the model is as it was.
        """
        source = _opset(model)
        if source == self.target:
            return PassResult(model, False, f"already at opset {source}")
        trip = f"cannot convert from opset {source} to {self.target}"
        if source < _OLDEST:
            raise UnsupportedError(f"{trip}: models below opset {_OLDEST} are not supported")
        if model.functions:
            raise UnsupportedError(f"{trip}: the model has functions; inline them first")
        context = Context(source, self.target, shapes.infer(model), Names(model))
        try:
            converted = _converted(model, context)
        except CannotAdaptError as error:
            raise UnsupportedError(f"{trip}: {error}") from error
        except InputError as error:
            raise UnsupportedError(f"{trip}: the result would not be valid: {error}") from error
        model.graph, model.ir_version = converted.graph, converted.ir_version
        return PassResult(model, True, f"opset {source} to {self.target}")


def _opset(model: ir.Model) -> int:
    imports = model.opset_imports
    return imports.get("", imports.get("ai.onnx", 1))


def _converted(model: ir.Model, context: Context) -> ir.Model:
    """A converted model that shares its tensors with ``model``, which is left as it is."""
    nodes = list(nodes_of(model.graph))
    adapters = {index: a for index, node in enumerate(nodes) if (a := adapter_for(node, context)) is not None}
    proto = structure_proto(model)
    number(proto, set(adapters))
    converted = ir.from_proto(_convert(proto, context.target))
    pairs = transplant(converted.graph, model.graph, nodes, context.names)
    _adapt(pairs, dict(zip(map(nodes.__getitem__, adapters), adapters.values(), strict=True)), context)
    imports = {d: v for d, v in model.opset_imports.items() if d not in ("", "ai.onnx")}
    converted.graph.opset_imports.clear()
    converted.graph.opset_imports.update({"": context.target, **imports})
    converted.ir_version = max(model.ir_version, _ir_version_for(context.target))
    check(converted)
    return converted


def _adapt(pairs: dict[ir.Node, ir.Node], adapters: dict[ir.Node, Adapter], context: Context) -> None:
    for node, original in pairs.items():
        if original in adapters:
            try:
                adapters[original](node, original, context)
            except CannotAdaptError as error:
                raise CannotAdaptError(f"{describe(original)}: {error}") from error


def _convert(proto: onnx.ModelProto, target: int) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(proto, target)
    except (RuntimeError, ValueError, onnx.version_converter.ConvertError) as error:
        raise CannotAdaptError(_reason(str(error))) from error


_MESSAGES: Final = (
    (re.compile(r"No Previous Version of (\w+)"), r"\1 does not exist there"),
    (re.compile(r"No Adapter (?:From|To) Version \$(\d+) for (\w+)"), r"no adapter for \2 at opset \1"),
    (re.compile(r"No Adapter For (\w+)"), r"no adapter for \1"),
    (re.compile(r"Assertion .* failed: (.*)", re.DOTALL), r"\1"),
)


def _reason(message: str) -> str:
    """What the converter's message says, on one line and without its source file."""
    for pattern, template in _MESSAGES:
        if found := pattern.search(message):
            return " ".join(found.expand(template).split())[:200]
    return " ".join(message.split())[:200]


def _ir_version_for(opset: int) -> int:
    table = onnx.helper.OP_SET_ID_VERSION_MAP  # noqa: TID251 (only onnx knows it)
    return table.get(("ai.onnx", opset), 0)
