"""Running a model: the only place that imports onnxruntime.

onnxruntime is imported on first use, because that alone takes longer than ``graphopt --help`` may.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from graphopt.errors import GraphOptError, ModelError, TargetError, UsageError

CPU = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True)
class _Element:
    """A tensor element type: its numpy dtype, its number in ONNX's TensorProto.DataType, and its width in bits."""

    dtype: np.dtype[Any]
    code: int
    bits: int
    native: bool


def _element(kind: Any, code: int, bits: int | None = None, native: bool = True) -> _Element:
    dtype = np.dtype(kind)
    return _Element(dtype, code, bits or 8 * dtype.itemsize, native)


# onnxruntime's python layer converts the native ones; the rest pass through as raw memory.
_ELEMENTS = {
    "float": _element(np.float32, 1),
    "uint8": _element(np.uint8, 2),
    "int8": _element(np.int8, 3),
    "uint16": _element(np.uint16, 4),
    "int16": _element(np.int16, 5),
    "int32": _element(np.int32, 6),
    "int64": _element(np.int64, 7),
    "string": _element(np.object_, 8),
    "bool": _element(np.bool_, 9),
    "float16": _element(np.float16, 10),
    "double": _element(np.float64, 11),
    "uint32": _element(np.uint32, 12),
    "uint64": _element(np.uint64, 13),
    "complex64": _element(np.complex64, 14),
    "complex128": _element(np.complex128, 15),
    "bfloat16": _element(ml_dtypes.bfloat16, 16, native=False),
    "float8e4m3fn": _element(ml_dtypes.float8_e4m3fn, 17, native=False),
    "float8e4m3fnuz": _element(ml_dtypes.float8_e4m3fnuz, 18, native=False),
    "float8e5m2": _element(ml_dtypes.float8_e5m2, 19, native=False),
    "float8e5m2fnuz": _element(ml_dtypes.float8_e5m2fnuz, 20, native=False),
    "uint4": _element(ml_dtypes.uint4, 21, 4, native=False),
    "int4": _element(ml_dtypes.int4, 22, 4, native=False),
    "float4e2m1": _element(ml_dtypes.float4_e2m1fn, 23, 4, native=False),
    "uint2": _element(ml_dtypes.uint2, 25, 2, native=False),
    "int2": _element(ml_dtypes.int2, 26, 2, native=False),
}
_RAW_DTYPES = {e.dtype for e in _ELEMENTS.values() if not e.native}
_KINDS = {"tensor": "tensor", "seq": "sequence", "optional": "optional", "map": "map", "sparse_tensor": "sparse"}


@dataclass(frozen=True, slots=True)
class InputInfo:
    """One input or output of a model.

    ``shape`` holds an int, a symbolic name or None (unknown) for each axis. It is ``()`` for a scalar and also for a
    tensor of unknown rank: onnxruntime does not tell them apart. ``kind`` is tensor, sequence, optional, map or sparse,
    and ``dtype`` (strings are ``object``) is then that of the tensors inside.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]
    kind: str = "tensor"

    def __str__(self) -> str:
        dims = ", ".join("?" if d is None else str(d) for d in self.shape)
        kind = "" if self.kind == "tensor" else f"{self.kind} of "
        return f"{self.name}: {kind}{'string' if self.dtype == object else self.dtype}[{dims}]"


class Session:
    """A loaded model that can be run.

    ``source`` is a path (needed for external data and for models above 2 GB) or the bytes of a ModelProto. ``threads``
    is the number of threads inside one operator, 0 for onnxruntime's own choice. ``optimize=False`` switches
    onnxruntime's graph optimizations off. ``provider_options`` holds one mapping for each provider. ``profile`` is the
    path prefix of a trace that :meth:`end_profiling` writes. ``config`` holds further session options of onnxruntime.

    Raises ModelError for a model that cannot be read or contradicts itself, TargetError for a provider that is missing
    or an operator it does not implement.
    """

    def __init__(
        self,
        source: str | Path | bytes,
        *,
        threads: int = 1,
        optimize: bool = True,
        providers: Sequence[str] = (CPU,),
        provider_options: Sequence[Mapping[str, str]] | None = None,
        profile: str | Path | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        ort = _onnxruntime()
        _require_providers(ort, providers)
        options = _options(ort, threads=threads, optimize=optimize)
        # Sums in a fixed order where a kernel offers the choice, so that two runs give the same bits.
        options.use_deterministic_compute = True
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        for key, value in (config or {}).items():
            options.add_session_config_entry(key, value)
        settings = [dict(o) for o in provider_options] if provider_options else None
        self.source = "model" if isinstance(source, bytes) else str(source)
        self._session = _create(ort, source, options, list(providers), settings)
        self.inputs = tuple(_info(arg) for arg in self._session.get_inputs())
        self.outputs = tuple(_info(arg) for arg in self._session.get_outputs())
        initializers = self._session.get_overridable_initializers()
        #: Names that may be fed: the inputs, and initializers that the model lists as inputs too.
        self.accepts = frozenset([i.name for i in self.inputs] + [a.name for a in initializers])

    def run(
        self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None, *, share: bool = False
    ) -> dict[str, Any]:
        """Run once and return the named outputs (default: all) by name.

        A tensor is returned as an array, a sequence as a list of arrays, an empty optional as None. Arrays in ``feeds``
        are not copied when they are contiguous. ``share=True`` returns tensors where the runtime computed them, without
        a copy where it allows that: such arrays must not be written to. Raises UsageError when names, dtypes or shapes
        of the feeds do not fit the model, ModelError or TargetError when the run fails.
        """
        missing = [i for i in self.inputs if i.name not in feeds and i.kind != "optional"]
        if missing:
            raise UsageError(f"no array for input {missing[0]}", where=self.source, hint=f"given: {_listed(feeds)}")
        if unknown := [name for name in feeds if name not in self.accepts]:
            expected = _listed(i.name for i in self.inputs)
            raise UsageError(
                f"the model has no input {unknown[0]!r}", where=self.source, hint=f"its inputs: {expected}"
            )
        wanted = [o for o in self.outputs if outputs is None or o.name in outputs]
        names = [o.name for o in wanted] if outputs is None else list(outputs)
        if absent := set(names) - {o.name for o in wanted}:
            raise UsageError(f"the model has no output {min(absent)!r}", where=self.source)
        try:
            return dict(zip(names, _execute(self._session, feeds, wanted, names, share=share), strict=True))
        except _ort_errors() as error:
            _translate(error, self.source, running=True)

    def end_profiling(self) -> Path:
        """Stop the trace asked for by ``profile`` and return the file it was written to."""
        return Path(self._session.end_profiling())


def evaluate(model: bytes, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> list[NDArray[Any]]:
    """Run ``model`` once, without optimizations, on one thread, keeping no memory, and return ``outputs`` in order.

    Made for constant folding: creating the session costs well under a millisecond for a few nodes, contiguous feeds are
    not copied, and a large temporary is returned to the system. Raises ModelError with onnxruntime's reason whenever
    the result cannot be had, also for an output that is not a tensor.
    """
    ort = _onnxruntime()
    options = _options(ort, threads=1, optimize=False)
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    # Repacked weights would be used once only.
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = _create(ort, model, options, [CPU], None)
        infos = {arg.name: _info(arg) for arg in session.get_outputs()}
        for name in outputs:
            if name not in infos or infos[name].kind != "tensor":
                raise ModelError("not a tensor output of the model", where=name)
        return _execute(session, feeds, [infos[name] for name in outputs], list(outputs))
    except _ort_errors() as error:
        _translate(error, None, running=False)
    except (TargetError, UsageError) as error:
        raise ModelError(error.message, where=error.where) from error


@cache
def _onnxruntime() -> Any:
    import onnxruntime

    # Warnings about the graph or the machine would land on the user's stderr; errors arrive as exceptions.
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


@cache
def _ort_errors() -> tuple[type[Exception], ...]:
    """Every class that onnxruntime raises: they share no base but Exception."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception)]
    # pybind11 turns std::bad_alloc, std::out_of_range and std::overflow_error into python's own.
    return (*own, RuntimeError, ValueError, TypeError, MemoryError, LookupError, ArithmeticError)


def _options(ort: Any, *, threads: int, optimize: bool) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return options


def _require_providers(ort: Any, providers: Sequence[str]) -> None:
    available = ort.get_available_providers()
    for name in providers:
        if name not in available:
            hint = f"it has {', '.join(available)}; other providers come with other onnxruntime packages"
            raise TargetError("this onnxruntime does not have the provider", where=name, hint=hint)


def _create(
    ort: Any,
    source: str | Path | bytes,
    options: Any,
    providers: list[str],
    settings: list[dict[str, str]] | None,
) -> Any:
    where = None if isinstance(source, bytes) else str(source)
    if where is not None and not Path(where).is_file():
        raise ModelError("no such model file", where=where)
    model = source if isinstance(source, bytes) else where
    try:
        # Without enable_fallback=0 a failing provider is replaced by the CPU and a message printed.
        return ort.InferenceSession(model, options, providers=providers, provider_options=settings, enable_fallback=0)
    except _ort_errors() as error:
        _translate(error, where, running=False)


def _info(arg: Any) -> InputInfo:
    """Read onnxruntime's ``seq(tensor(float))`` and the like."""
    outer, _, rest = arg.type.partition("(")
    # A map's last type is that of its values.
    element = _ELEMENTS.get(re.split(r"[(,]", rest.rstrip(")"))[-1].strip())
    if element is None:
        raise TargetError(f"element type of {arg.type} is unknown to graphopt", where=arg.name)
    shape = tuple(d if isinstance(d, int) and d >= 0 else (d if isinstance(d, str) and d else None) for d in arg.shape)
    return InputInfo(arg.name, element.dtype, shape, _KINDS[outer])


def _execute(
    session: Any, feeds: Mapping[str, Any], wanted: Sequence[InputInfo], names: list[str], *, share: bool = False
) -> list[Any]:
    values = {name: _to_ort(value) for name, value in feeds.items()}
    plain = all(isinstance(value, np.ndarray) and value.dtype.kind != "O" for value in values.values())
    share = share and plain and all(o.kind == "tensor" and o.dtype.kind != "O" for o in wanted)
    if not share and not any(o.dtype in _RAW_DTYPES for o in wanted):
        return list(session.run(names, values))
    if odd := [o for o in wanted if o.kind != "tensor"]:
        raise ModelError(f"a {odd[0].kind} cannot be read beside an output numpy has no dtype for", where=odd[0].name)
    make = _onnxruntime().OrtValue.ortvalue_from_numpy
    values = {name: make(value) if isinstance(value, np.ndarray) else value for name, value in values.items()}
    return [_from_ort(value) for value in session.run_with_ort_values(names, values)]


def _to_ort(value: Any) -> Any:
    """Return what onnxruntime accepts: lists (sequences) and None (optionals) stay, foreign arrays become numpy's."""
    if isinstance(value, list) or value is None:
        return value
    array = np.asarray(value)
    if array.dtype not in _RAW_DTYPES:
        return array
    ort_value = _onnxruntime().OrtValue
    element = next(e for e in _ELEMENTS.values() if e.dtype == array.dtype)
    if element.bits >= 8:
        return ort_value.ortvalue_from_numpy_with_onnx_type(np.asarray(array, order="C"), element.code)
    packed = _pack(array, element.bits)
    packed_value = ort_value.ortvalue_from_shape_and_type(list(array.shape), element.code)
    ctypes.memmove(packed_value.data_ptr(), packed.ctypes.data, packed.nbytes)
    return packed_value


def _from_ort(value: Any) -> NDArray[Any]:
    element = next(e for e in _ELEMENTS.values() if e.code == value.element_type())
    if element.native:
        array: NDArray[Any] = value.numpy()
        return array
    shape = tuple(value.shape())
    count = int(np.prod(shape, dtype=np.int64))
    size = -(-count * element.bits // 8)
    memory = bytearray(ctypes.string_at(value.data_ptr(), size) if size else b"")
    if element.bits >= 8:
        return np.frombuffer(memory, dtype=element.dtype).reshape(shape)
    return _unpack(np.frombuffer(memory, dtype=np.uint8), element, count).reshape(shape)


def _pack(array: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Pack one element a byte into ``8 // bits`` elements a byte, the first in the lowest bits."""
    per_byte = 8 // bits
    flat = array.reshape(-1).view(np.uint8) & ((1 << bits) - 1)
    padded = np.zeros(-(-flat.size // per_byte) * per_byte, dtype=np.uint8)
    padded[: flat.size] = flat
    packed = np.zeros(padded.size // per_byte, dtype=np.uint8)
    for position in range(per_byte):
        packed |= padded[position::per_byte] << (position * bits)
    return packed


def _unpack(packed: NDArray[np.uint8], element: _Element, count: int) -> NDArray[Any]:
    per_byte = 8 // element.bits
    codes = np.empty((packed.size, per_byte), dtype=np.uint8)
    for position in range(per_byte):
        codes[:, position] = (packed >> (position * element.bits)) & ((1 << element.bits) - 1)
    flat = codes.reshape(-1)[:count]
    if element.dtype.name.startswith("int"):
        # Sign-extend: ml_dtypes keeps a whole byte for each element.
        flat = ((flat ^ (1 << (element.bits - 1))).astype(np.int16) - (1 << (element.bits - 1))).astype(np.int8)
    return flat.view(element.dtype)


_NODE_PATTERNS = (
    re.compile(r"while running (?P<op>\S+) node\. Name:'(?P<node>[^']*)' Status Message: (?P<text>.*)"),
    re.compile(r"Node:? ?\((?P<node>.*?)\) Op \((?P<op>\w+)\) (?P<text>.*)"),
    re.compile(r"(?P<text>Could not find an implementation for (?P<op>[^(]+)\(\d+\)) node with name '(?P<node>[^']*)'"),
    re.compile(r'In Node, \("(?P<node>[^"]*)", (?P<op>\w+), .*Error (?P<text>.*)'),
    re.compile(r"(?P<text>Type Error: .*) of operator \((?P<op>\w+)\) in node \((?P<node>[^)]*)\)"),
    re.compile(r"(?P<text>.*?)[Nn]ode(?: with name)?:? ?'(?P<node>[^']+)'"),
)


def _translate(error: Exception, where: str | None, *, running: bool) -> NoReturn:
    """Raise the graphopt error for one of onnxruntime's, with its first line and the node it names."""
    if isinstance(error, GraphOptError):
        raise error
    kind = type(error).__name__
    lines = str(error).strip().splitlines() or [kind]
    # Wrong feeds are listed axis by axis below the first line.
    line = " ".join(part.strip() for part in lines) if "Got invalid dimensions" in lines[0] else lines[0]
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    node = None
    for pattern in _NODE_PATTERNS:
        if match := pattern.search(text):
            op = match.groupdict().get("op")
            node = " ".join(p for p in (op, repr(match["node"]) if match["node"] else "") if p)
            text = match["text"]
            break
    text = _without_source_place(text).strip() or kind
    place = ": ".join(p for p in (where, node) if p) or None
    if running and kind == "InvalidArgument" and node is None:
        raise UsageError(text, where=place) from error
    if kind in ("NotImplemented", "EPFail", "EngineError", "ModelRequiresCompilation"):
        raise TargetError(text, where=place) from error
    raise ModelError(text, where=place) from error


# Failed checks begin with the place in onnxruntime's source: a path and the whole signature, or a file and a function.
_SIGNATURE = re.compile(r"/\S+\.(?:cc|h):\d+ [^()]*(?=\()")
_FUNCTION = re.compile(r"\b[\w/]+\.(?:cc|h):\d+ \w+ ")


def _without_source_place(text: str) -> str:
    match = _SIGNATURE.search(text)
    if match is None:
        return _FUNCTION.sub("", text)
    depth, end = 0, len(text)
    for index in range(match.end(), len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            end = index + 1
            break
    rest = re.sub(r"^\s*(?:const)?\s*(?:\[with [^\]]*\])?\s*", "", text[end:])
    condition, _, reason = rest.partition(" was false. ")
    return text[: match.start()] + (reason or condition)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
