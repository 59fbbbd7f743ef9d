"""Convert the model to another version of ONNX's operator set, up or down.

Attributes that became inputs (axes, pads, min and max, ...) are moved, changed defaults are made explicit, renamed
operators get their new name. Between versions whose signature did not change nothing is touched.

Before, at opset 12::

    y = Squeeze <axes = [1]> (x)

After ``convert-opset{version=17}``::

    y = Squeeze (x, axes)        # axes: int64[1] = {1}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.errors import UsageError
from graphopt.ir import Model, Node, attr, constant, nodes, opset, rank_of, shape_of
from graphopt.ir.schema import defaults, latest_opset, misfit, schema
from graphopt.pipeline import Changes, Pass, PassContext, option

OLDEST = 7
REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")

MOVED = {
    ("Slice", 10): ("starts", "ends", "axes"),
    ("TopK", 10): ("k",),
    ("Upsample", 9): ("scales",),
    ("Clip", 11): ("min", "max"),
    ("Pad", 11): ("pads", "value"),
    ("Dropout", 12): ("ratio",),
    ("Squeeze", 13): ("axes",),
    ("Unsqueeze", 13): ("axes",),
    ("ReduceSum", 13): ("axes",),
    ("Split", 13): ("split",),
    **{(f"Reduce{kind}", 18): ("axes",) for kind in REDUCTIONS},
}
"""(operator, version): the attributes that became inputs 1, 2, ... at that version."""

LIKE_INPUT = {"min", "max", "value"}
"""Moved attributes whose input has the dtype of input 0; ``ratio`` and ``scales`` are float32, all others int64."""


@dataclass(frozen=True, kw_only=True)
class ConvertOpset(Pass):
    """Convert to another version of ONNX's own operator set."""

    name: ClassVar[str] = "convert-opset"
    version: int = option(17, "the opset version to convert to", ge=OLDEST)
    only_up: bool = option(False, "leave a model of a newer opset as it is")

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Convert every node. Raises PassError, naming the node, for what the other version cannot express."""
        current = opset(model)
        if self.version > latest_opset():
            raise UsageError(f"the newest opset known here is {latest_opset()}", where=str(self))
        if current == 0 or current == self.version or (self.only_up and current > self.version):
            return Changes()
        if current < OLDEST:
            raise UsageError(f"the model is of opset {current}; conversion starts at {OLDEST}", where=str(self))
        first = next(nodes(model), None)
        if first is not None and not ctx.may_rewrite(
            first, f"convert the model from opset {current} to {self.version}"
        ):
            return Changes()
        ctx.get(Shapes)
        changes = Changes(opsets=1)
        for node in [node for node in nodes(model) if node.domain == ""]:
            changes["nodes converted"] += _convert(node, current, self.version, ctx)
        ctx.edit.set_opset(self.version)
        return changes


def _convert(node: Node, current: int, version: int, ctx: PassContext) -> bool:
    if schema("", node.op_type, current) is None:
        return False
    old_defaults = defaults(node.op_type, current)
    step, changed, at = 1 if version > current else -1, False, current
    while at != version:
        boundary = at + 1 if step > 0 else at
        convert = (UP if step > 0 else DOWN).get((node.op_type, boundary))
        if convert is not None:
            convert(node, ctx)
            changed = True
        elif (node.op_type, boundary) in MOVED:
            (_attributes_to_inputs if step > 0 else _inputs_to_attributes)(node, boundary, ctx)
            changed = True
        at += step
    _check(node, old_defaults, version, ctx)
    return changed


def _check(node: Node, old_defaults: dict[str, Any], version: int, ctx: PassContext) -> None:
    """Refuse what the other version lacks; an attribute that it lacks may go when it has its default value."""
    new = schema("", node.op_type, version)
    if new is None or new.deprecated:
        raise ctx.fail(f"opset {version} has no operator {node.op_type}", node, "run decompose before convert-opset")
    for name in [name for name in node.attributes if name not in new.types]:
        if attr(node, name) != _plain(old_defaults.get(name)):
            raise ctx.fail(f"opset {version} cannot express {name}={attr(node, name)}", node)
        ctx.edit.set_attr(node, name, None)
    reason = misfit(node, version)
    if reason is not None:
        raise ctx.fail(f"at opset {version} {reason}", node)


def _plain(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value


def _attributes_to_inputs(node: Node, version: int, ctx: PassContext) -> None:
    for index, name in enumerate(MOVED[node.op_type, version], start=1):
        value = attr(node, name)
        if value is None:
            continue
        array = _as_array(node, name, value)
        ctx.edit.set_input(node, index, ctx.edit.constant(array, f"{node.outputs[0].name}_{name}"))
        ctx.edit.set_attr(node, name, None)


def _as_array(node: Node, name: str, value: object) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    if name in LIKE_INPUT:
        dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
        return np.asarray(value, dtype=np.float32 if dtype is None else dtype.numpy())
    if name in ("ratio", "scales"):
        return np.asarray(value, dtype=np.float32)
    return np.atleast_1d(np.asarray(value, dtype=np.int64))


def _inputs_to_attributes(node: Node, version: int, ctx: PassContext) -> None:
    for index, name in reversed(list(enumerate(MOVED[node.op_type, version], start=1))):
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            continue
        array = constant(value)
        if array is None:
            raise ctx.fail(f"before opset {version} {name} is an attribute, and here it is computed", node)
        single = name in LIKE_INPUT or name in ("ratio", "k")
        ctx.edit.set_attr(node, name, array.reshape(-1)[0].item() if single else array.reshape(-1).tolist())
        ctx.edit.set_input(node, index, None)
        ctx.edit.erase_constant(value)


def _softmax(node: Node, ctx: PassContext, *, old_axis: int, new_axis: int) -> None:
    """Before opset 13 everything from ``axis`` on was one dimension; the two agree on the last axis alone."""
    rank = rank_of(node.inputs[0])
    axis = attr(node, "axis", old_axis)
    if rank is None:
        raise ctx.fail("the number of dimensions of its input is unknown", node, "run infer or fix-shapes first")
    if axis % rank == rank - 1:
        ctx.edit.set_attr(node, "axis", rank - 1 if new_axis == 1 else -1)
        return
    if old_axis != 1:
        raise ctx.fail(f"before opset 13 it cannot work along axis {axis} of {rank} alone", node)
    source, result = node.inputs[0], node.outputs[0]
    shape = ctx.edit.insert_before(node, "Shape", [source])
    flat = ctx.edit.insert_before(node, "Flatten", [source], {"axis": axis})
    ctx.edit.set_input(node, 0, flat.outputs[0])
    ctx.edit.set_attr(node, "axis", -1)
    back = ctx.edit.insert_after(node, "Reshape", [result, shape.outputs[0]], like=result)
    ctx.edit.replace_uses(result, back.outputs[0])
    ctx.edit.annotate(result, result.dtype, None)


def _split_up(node: Node, ctx: PassContext) -> None:
    if len(node.inputs) < 2:
        ctx.edit.set_attr(node, "num_outputs", len(node.outputs))


def _split_down(node: Node, ctx: PassContext) -> None:
    """Before opset 18 a Split without sizes had to come out even."""
    ctx.edit.set_attr(node, "num_outputs", None)
    if len(node.inputs) > 1:
        return
    shape, axis, parts = shape_of(node.inputs[0]), attr(node, "axis", 0), len(node.outputs)
    size = shape[axis] if shape is not None else None
    if not isinstance(size, int):
        raise ctx.fail("the size that it splits is unknown", node, "run fix-shapes first")
    each = -(-size // parts)
    sizes = [each] * (parts - 1) + [size - each * (parts - 1)]
    if size % parts:
        ctx.edit.set_input(node, 1, ctx.edit.constant(np.array(sizes, np.int64), f"{node.outputs[0].name}_split"))


def _gemm_down(node: Node, ctx: PassContext) -> None:
    """Before opset 11 the bias was not optional: it becomes a zero."""
    dtype = node.outputs[0].dtype
    if dtype is not None and (len(node.inputs) < 3 or node.inputs[2] is None):
        ctx.edit.set_input(node, 2, ctx.edit.constant(np.zeros(1, dtype.numpy()), f"{node.outputs[0].name}_bias"))


def _resize_up(node: Node, ctx: PassContext) -> None:
    """Resize before opset 11 knew one way of counting coordinates, and no region of interest."""
    scales = node.inputs[1]
    ctx.edit.set_input(node, 2, scales)
    ctx.edit.set_input(node, 1, None)
    ctx.edit.set_attr(node, "coordinate_transformation_mode", "asymmetric")
    if attr(node, "mode", "nearest") == "nearest":
        ctx.edit.set_attr(node, "nearest_mode", "floor")


def _grid_sample(node: Node, ctx: PassContext, names: dict[str, str]) -> None:
    mode = attr(node, "mode", next(iter(names)))
    ctx.edit.set_attr(node, "mode", names.get(mode, mode))


def _refuse(reason: str) -> Callable[[Node, PassContext], None]:
    def convert(node: Node, ctx: PassContext) -> None:
        raise ctx.fail(reason, node)

    return convert


def _batchnorm_up(node: Node, ctx: PassContext) -> None:
    if attr(node, "spatial", 1) != 1:
        raise ctx.fail("BatchNormalization with spatial=0 has no counterpart from opset 9 on", node)
    ctx.edit.set_attr(node, "spatial", None)


Converter = Callable[[Node, PassContext], None]
SOFTMAXES = ("Softmax", "LogSoftmax", "Hardmax")
UP: dict[tuple[str, int], Converter] = {
    ("BatchNormalization", 9): _batchnorm_up,
    ("Scan", 9): _refuse("Scan changed its meaning at opset 9"),
    ("Upsample", 10): lambda node, ctx: ctx.edit.set_operator(node, "Resize"),
    ("Resize", 11): _resize_up,
    ("Scatter", 11): lambda node, ctx: ctx.edit.set_operator(node, "ScatterElements"),
    ("RoiAlign", 16): lambda node, ctx: ctx.edit.set_attr(node, "coordinate_transformation_mode", "output_half_pixel"),
    ("Split", 18): _split_up,
    ("GridSample", 20): lambda node, ctx: _grid_sample(node, ctx, {"bilinear": "linear", "bicubic": "cubic"}),
    ("GroupNormalization", 21): _refuse("scale and bias are one a group before opset 21 and one a channel from it on"),
    **{(name, 13): lambda node, ctx: _softmax(node, ctx, old_axis=1, new_axis=-1) for name in SOFTMAXES},
}
DOWN: dict[tuple[str, int], Converter] = {
    ("Gemm", 11): _gemm_down,
    ("Resize", 11): _refuse("Resize before opset 11 knows no coordinate modes"),
    ("Split", 18): _split_down,
    ("GridSample", 20): lambda node, ctx: _grid_sample(node, ctx, {"linear": "bilinear", "cubic": "bicubic"}),
    ("GroupNormalization", 21): UP["GroupNormalization", 21],
    ("RoiAlign", 16): _refuse("RoiAlign before opset 16 knows no half-pixel coordinates"),
    **{(name, 13): lambda node, ctx: _softmax(node, ctx, old_axis=-1, new_axis=1) for name in SOFTMAXES},
}
