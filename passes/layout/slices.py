"""Slice, Split, Gather and Concat: selections of selections, and parts that are put together again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.graph import describe
from graphopt.passes.layout._operands import (
    LARGEST_INDEX,
    Cut,
    axes_of,
    cuts_of,
    entries,
    normal_axis,
    selection_of,
)
from graphopt.rewrite import Context, Rule, is_exclusive, is_op, producer

__all__ = ["ConcatConcat", "ConcatSlices", "SliceSlice", "SliceSqueeze", "SplitConcat", "SplitSqueeze"]

#: No axis is longer; as the end of a slice it means "to the end".
_NO_END: Final = 2**31 - 1
_INT64_MAX: Final = 2**63 - 1
#: Before, Gather took no negative indices, and Concat and Split no negative axes.
_MIN_OPSET: Final = 11


class Pair(NamedTuple):
    """A node, the last one of the pattern, and the one before it."""

    node: ir.Node
    before: ir.Node


class SliceSqueeze(Rule[Pair]):
    """Slice of one entry of an axis, then Squeeze of that axis: one Gather of a scalar index.

    Left alone: a Slice that others use, of several axes, or with bounds that are not constant.
    """

    name = "slice-squeeze"
    roots = ("Squeeze",)

    def match(self, node: ir.Node) -> Pair | None:
        """A Squeeze behind a Slice."""
        before = producer(node.inputs[0], node, "Slice")
        return None if before is None else Pair(node, before)

    def check(self, match: Pair, context: Context) -> str | None:
        """One entry of one axis, the axis that is squeezed."""
        if context.opset < _MIN_OPSET:
            return (
                f"opset {context.opset} has no Gather of negative indices; convert to {_MIN_OPSET} or later"
            )
        cuts = cuts_of(match.before, context)
        if cuts is None:
            return f"a bound of {describe(match.before)} is not constant"
        if len(cuts) != 1 or axes_of(match.node, context) != tuple(cuts):
            return f"{describe(match.node)} takes away other axes than {describe(match.before)} cuts"
        if not all(_is_one_entry(cut) for cut in cuts.values()):
            return f"{describe(match.before)} may keep more than one entry"
        return _why_not_exclusive(match.before)

    def rewrite(self, match: Pair, context: Context) -> None:
        """One Gather."""
        cuts = cuts_of(match.before, context)
        assert cuts is not None
        for axis, cut in cuts.items():
            _gather_scalar(match.node, match.before.inputs[0], axis, cut.start, context)


def _is_one_entry(cut: Cut) -> bool:
    if cut.step != 1:
        return False
    return cut.end >= _NO_END if cut.start == -1 else cut.end == cut.start + 1


def _why_not_exclusive(node: ir.Node) -> str | None:
    if is_exclusive(node.outputs[0]):
        return None
    return f"the output '{node.outputs[0].name}' of {describe(node)} is used elsewhere"


def _gather_scalar(node: ir.Node, source: ir.Value | None, axis: int, index: int, context: Context) -> None:
    place = context.constant(f"{node.outputs[0].name}_index", np.array(index, np.int64))
    context.replace(node.outputs[0], "Gather", [source, place], [ir.AttrInt64("axis", axis)], like=node)


class SplitSqueeze(Rule[ir.Node]):
    """Split into entries, each squeezed: a Gather of a scalar index each, without the Split.

    Left alone: a Split with a part that is larger or that another operator uses.
    """

    name = "split-squeeze"
    roots = ("Split",)

    def match(self, node: ir.Node) -> ir.Node | None:
        """A Split of which some part is squeezed."""
        users = [user for output in node.outputs for user in output.consumers()]
        return node if any(is_op(user, "Squeeze") for user in users) else None

    def check(self, match: ir.Node, context: Context) -> str | None:
        """Parts of one entry, each of them squeezed."""
        axis = normal_axis(match.attributes.get_int("axis", 0), match.inputs[0], context)
        if context.opset < _MIN_OPSET or axis is None:
            return f"the axis of {describe(match)} is not known"
        for output in match.outputs:
            shape = context.infer(output).dims
            if shape is None or shape[axis] != 1:
                return f"the part '{output.name}' of {describe(match)} is not known to be one entry"
            if output.is_graph_output():
                return f"the part '{output.name}' of {describe(match)} is a graph output"
            for user in output.consumers():
                if not is_op(user, "Squeeze") or axes_of(user, context) != (axis,):
                    return f"the part '{output.name}' of {describe(match)} is used by {describe(user)}"
        return None

    def rewrite(self, match: ir.Node, context: Context) -> None:
        """A Gather for each Squeeze."""
        axis = normal_axis(match.attributes.get_int("axis", 0), match.inputs[0], context)
        assert axis is not None
        for index, output in enumerate(match.outputs):
            for user in list(output.consumers()):
                _gather_scalar(user, match.inputs[0], axis, index, context)


class SliceSlice(Rule[Pair]):
    """Slice of a Slice, of other axes or nested ranges: one Slice. Slice or Gather of a Gather: one Gather.

    Left alone: a first one that anything else than such a second one uses, bounds that are not constant,
    nested ranges that count from the end.
    """

    name = "slice-slice"
    roots = ("Slice", "Gather")

    def match(self, node: ir.Node) -> Pair | None:
        """Two selections in a row."""
        before = producer(node.inputs[0], node, "Slice", "Gather")
        return None if before is None else Pair(node, before)

    def check(self, match: Pair, context: Context) -> str | None:
        """All users of the first one can do without it."""
        output = match.before.outputs[0]
        if output.is_graph_output():
            return f"'{output.name}' is a graph output"
        for user in output.consumers():
            pair = Pair(user, match.before)
            if user.graph is not match.node.graph or user.inputs[0] is not output:
                return f"the output '{output.name}' is used by {describe(user)}"
            if _joined_cuts(pair, context) is None and _joined_indices(pair, context) is None:
                return f"{describe(user)} and {describe(match.before)} are not known to be one selection"
        return None

    def rewrite(self, match: Pair, context: Context) -> None:
        """One Slice or Gather, on the input of the first one."""
        node, source = match.node, match.before.inputs[0]
        name, cuts = node.outputs[0].name, _joined_cuts(match, context)
        if cuts is None:
            joined = _joined_indices(match, context)
            assert joined is not None
            _gather(node, source, *joined, context)
            return
        bounds = np.array([(c.start, c.end, axis, c.step) for axis, c in sorted(cuts.items())], np.int64)
        names = ("starts", "ends", "axes", "steps")
        inputs = [context.constant(f"{name}_{n}", bounds[:, i].copy()) for i, n in enumerate(names)]
        context.replace(node.outputs[0], "Slice", [source, *inputs], like=node)


def _gather(node: ir.Node, source: ir.Value | None, axis: int, indices: np.ndarray, context: Context) -> None:
    place = context.constant(f"{node.outputs[0].name}_indices", indices.astype(np.int32))
    context.replace(node.outputs[0], "Gather", [source, place], [ir.AttrInt64("axis", axis)], like=node)


def _joined_cuts(pair: Pair, context: Context) -> dict[int, Cut] | None:
    if not is_op(pair.node, "Slice") or not is_op(pair.before, "Slice"):
        return None
    inner, outer = cuts_of(pair.before, context), cuts_of(pair.node, context)
    if inner is None or outer is None:
        return None
    joined = {axis: _nested(inner[axis], cut) if axis in inner else cut for axis, cut in outer.items()}
    found = {**inner, **{axis: cut for axis, cut in joined.items() if cut is not None}}
    return found if None not in joined.values() else None


def _nested(inner: Cut, outer: Cut) -> Cut | None:
    """``x[inner][outer]`` as one cut; both count from the front."""
    if min(*inner, *outer) < 0 or not inner.step or not outer.step:
        return None
    start = inner.start + outer.start * inner.step
    end = min(inner.end, inner.start + outer.end * inner.step)
    return Cut(min(start, _INT64_MAX), min(end, _INT64_MAX), min(inner.step * outer.step, _INT64_MAX))


def _joined_indices(pair: Pair, context: Context) -> tuple[int, np.ndarray] | None:
    if not any(is_op(node, "Gather") for node in pair):
        return None
    inner, outer = selection_of(pair.before, context), selection_of(pair.node, context)
    if inner is None or outer is None or inner[0] != outer[0] or outer[1].size > LARGEST_INDEX:
        return None
    return inner[0], inner[1][outer[1]]


class ConcatSlices(Rule[ir.Node]):
    """Concat of selections of one tensor along one axis: the tensor itself, or one Gather (a roll, a flip).

    Adjacent Slices from the start to the end are the tensor whatever its size is; for anything else the axis
    must have a fixed size.

    Left alone: selections of different tensors, selections that others use where a Gather is needed.
    """

    name = "concat-slices"
    roots = ("Concat",)

    def match(self, node: ir.Node) -> ir.Node | None:
        """A Concat of two or more selections of the same tensor."""
        parts = [producer(value, node, "Slice", "Gather") for value in node.inputs]
        sources = {id(part.inputs[0]) if part is not None else None for part in parts}
        return node if len(parts) > 1 and len(sources) == 1 and None not in sources else None

    def check(self, match: ir.Node, context: Context) -> str | None:
        """The whole in order, or a fixed size and parts that nobody else needs."""
        if context.opset < _MIN_OPSET:
            return (
                f"opset {context.opset} has no Gather of negative indices; convert to {_MIN_OPSET} or later"
            )
        if _are_adjacent(_parts(match), _concat_axis(match, context), context):
            return None
        indices = _concat_indices(match, context)
        if indices is None:
            return f"the parts of {describe(match)} are not known, or not along its axis"
        if indices.size > LARGEST_INDEX:
            return f"the index of {indices.size} entries for {describe(match)} would be too large"
        if not any(is_exclusive(value) for value in match.inputs if value is not None):
            return f"every part of {describe(match)} is used elsewhere"
        return None

    def rewrite(self, match: ir.Node, context: Context) -> None:
        """The tensor, or a Gather of it."""
        parts, axis = _parts(match), _concat_axis(match, context)
        source = parts[0].inputs[0]
        assert source is not None
        assert axis is not None
        if _are_adjacent(parts, axis, context):
            context.redirect(match.outputs[0], source, like=match)
            return
        indices, whole = _concat_indices(match, context), entries(source, axis, context)
        assert indices is not None
        if whole is not None and np.array_equal(indices, whole):
            context.redirect(match.outputs[0], source, like=match)
            return
        _gather(match, source, axis, indices, context)


def _parts(node: ir.Node) -> list[ir.Node]:
    found = [value.producer() for value in node.inputs if value is not None]
    return [part for part in found if part is not None]


def _concat_axis(node: ir.Node, context: Context) -> int | None:
    return normal_axis(node.attributes.get_int("axis", 0), node.inputs[0], context)


def _are_adjacent(parts: Sequence[ir.Node], axis: int | None, context: Context) -> bool:
    """Whether Slices of one axis follow each other from the start to the end."""
    place = 0
    for part in parts:
        cuts = cuts_of(part, context) if part.op_type == "Slice" else None
        if cuts is None or list(cuts) != [axis]:
            return False
        cut = next(iter(cuts.values()))
        if cut.step != 1 or cut.start != place or cut.end < cut.start:
            return False
        place = cut.end
    return place >= _NO_END


def _concat_indices(node: ir.Node, context: Context) -> np.ndarray | None:
    axis, found = _concat_axis(node, context), []
    for part in _parts(node):
        selection = selection_of(part, context)
        if selection is None or selection[0] != axis:
            return None
        found.append(selection[1])
    return np.concatenate(found)


class SplitConcat(Rule[Pair]):
    """All parts of a Split, put together again in order along the same axis: the tensor itself."""

    name = "split-concat"
    roots = ("Concat",)

    def match(self, node: ir.Node) -> Pair | None:
        """A Concat of all parts of one Split in order."""
        split = producer(node.inputs[0], node, "Split") if node.inputs else None
        return Pair(node, split) if split is not None and list(node.inputs) == list(split.outputs) else None

    def check(self, match: Pair, context: Context) -> str | None:
        """The same axis."""
        axis = normal_axis(match.before.attributes.get_int("axis", 0), match.before.inputs[0], context)
        if axis is None or axis != _concat_axis(match.node, context):
            return f"{describe(match.node)} and {describe(match.before)} are not known to have the same axis"
        return None

    def rewrite(self, match: Pair, context: Context) -> None:
        """The input of the Split."""
        source = match.before.inputs[0]
        assert source is not None
        context.redirect(match.node.outputs[0], source, like=match.node)


class ConcatConcat(Rule[ir.Node]):
    """Concat of Concats along the same axis: one Concat.

    Left alone: an inner Concat that others use, or along another axis.
    """

    name = "concat-concat"
    roots = ("Concat",)

    def match(self, node: ir.Node) -> ir.Node | None:
        """A Concat with another one among its inputs."""
        return node if any(producer(value, node, "Concat") is not None for value in node.inputs) else None

    def check(self, match: ir.Node, context: Context) -> str | None:
        """At least one inner Concat that only this one uses, along the same axis."""
        if any(_is_inner(value, match, context) for value in match.inputs):
            return None
        return f"the Concats before {describe(match)} are used elsewhere or have another axis"

    def rewrite(self, match: ir.Node, context: Context) -> None:
        """One Concat of all inputs."""
        inputs: list[ir.Value | None] = []
        for value in match.inputs:
            inner = value.producer() if value is not None and _is_inner(value, match, context) else None
            inputs += [value] if inner is None else list(inner.inputs)
        context.replace(match.outputs[0], "Concat", inputs, match.attributes.values(), like=match)


def _is_inner(value: ir.Value | None, node: ir.Node, context: Context) -> bool:
    inner = producer(value, node, "Concat")
    if inner is None or value is None or not is_exclusive(value):
        return False
    axis = node.attributes.get_int("axis", 1)
    same = inner.attributes.get_int("axis", 1) == axis
    return same or _concat_axis(inner, context) == normal_axis(axis, value, context) is not None
