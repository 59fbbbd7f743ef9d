"""What is stated of a target: see :class:`Target`, :class:`Quantization` and :class:`Rule`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphopt.targets.host import host_target


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A form of an operator that a target does not take, or takes and computes wrongly (``wrong``).

    ``op`` is its name, ``domain::name`` outside ONNX's own domain. ``when`` narrows it to attributes: each named one
    has to have one of the values listed, as text, its default where it is absent. ``types`` narrows it to models with
    activations of these types, numpy's names, where ``float`` stands for no Q/DQ pairs, ``constant`` to nodes whose
    input of that index is constant, ``other_than`` to those where it has an element that is not this number,
    ``operands`` to those with at least as many inputs, ``gates`` to those whose result and first input meet in an
    operator of that name, ``reader`` to those whose output such an operator reads. ``why`` is the reason in the
    vendor's words, ``cure`` a pipeline that turns it into a form which the target takes, ``advice`` what helps
    otherwise.
    """

    op: str
    why: str
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    types: frozenset[str] = frozenset()
    constant: int = -1
    operands: int = 0
    gates: str = ""
    other_than: int | None = None
    reader: str = ""
    wrong: bool = False
    cure: str = ""
    advice: str = ""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What a target wants of quantized models; types are numpy's names.

    ``kernels`` maps an operator to the inputs that must be quantized for its integer kernel (none listed: all of
    them), ``moves`` names the operators that work on integers of any scale as long as input and output share it; around
    ``on_integers``, which are some of them, the runtime leaves Q/DQ pairs, so that they have to be written on integers.
    ``absorbed`` maps an operator to those whose work its integer kernel does too, so that no Q/DQ pair may stand in
    between.
    ``needs_output`` names the operators whose integer kernel writes integers only. ``pair_limit`` is the largest sum of
    two neighbouring weights along the reduction axis that the 8-bit kernel can multiply with 255 without saturating, 0
    where it never does; ``pairs_by_pixel`` tells that neighbours are channels of one pixel always, so that of an odd
    number the last has none. ``product`` is an operator, domain::name, for a product of integers with a bias in floats,
    if the runtime does not merge the bias by itself.

    ``every_edge`` tells that a value without a Q/DQ pair makes what touches it compute in floats, so that each operator
    of ``kernels`` and ``moves`` gets pairs around it, whether it has a layer next to it or not. ``bias`` is empty where
    biases stay in float. ``wide_activations`` is the 16-bit type for activations that 8 bits are too few for,
    ``wide_products`` the type of both operands of a product of two activations then, ``wide_biased`` the operators that
    need 16 bits wherever they have a bias. ``power_of_two`` asks for scales
    that are powers of two, ``bias_zero_point`` for a zero point, 0, on biases too, ``off_middle`` for zero points of
    weights and activations that are not at the middle of their type.
    """

    activations: str
    activations_symmetric: bool
    weights: str
    weights_symmetric: bool
    per_channel: bool
    bias: str
    min_opset: int
    kernels: Mapping[str, tuple[int, ...]]
    moves: frozenset[str]
    absorbed: Mapping[str, frozenset[str]]
    needs_output: frozenset[str]
    on_integers: frozenset[str] = frozenset()
    product: str = ""
    wide_activations: str = ""
    wide_products: str = ""
    wide_biased: frozenset[str] = frozenset()
    pair_limit: int = 0
    pairs_by_pixel: bool = False
    every_edge: bool = False
    power_of_two: bool = False
    bias_zero_point: bool = False
    off_middle: bool = False


@dataclass(frozen=True, kw_only=True)
class Target:
    """A place where models run.

    ``provider`` is onnxruntime's name of the execution provider, empty where another runtime runs the models;
    ``domains`` the operator domains that it runs besides ONNX's own, ``floats`` the floating-point types that it runs
    models in, ``vector_width`` the number of channels that it computes at a time, ``verified`` whether its facts were
    checked on the real thing, ``source`` where they come from.

    ``toolchain`` names what checks a model for it (``qnn``, ``openvino``, ``rknn``, ``ort``), empty where nothing can.
    ``options`` are the settings of the hardware, such as the chip, with their values; ``choices`` the values known of
    each and what they stand for. ``opset`` is the oldest that has all operators it takes, ``max_opset`` the newest that
    it reads, each 0 for any; ``split_pools`` the largest side of images that are averaged faster in small steps, 0 for
    none; ``packed_inputs`` how many input channels a convolution takes in the time of one, 0 where fewer take less;
    ``static_shapes`` tells that all shapes have to be known; ``max_rank`` is how many axes a tensor may have, 0
    for any; ``rules`` what it does not take, or computes wrongly.
    """

    name: str
    description: str
    provider: str
    source: str
    verified: bool
    toolchain: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    domains: frozenset[str] = frozenset()
    floats: frozenset[str] = frozenset({"float32"})
    vector_width: int = 1
    opset: int = 0
    max_opset: int = 0
    split_pools: int = 0
    packed_inputs: int = 0
    static_shapes: bool = False
    max_rank: int = 0
    rules: tuple[Rule, ...] = ()
    quantization: Quantization | None = None

    @property
    def is_host(self) -> bool:
        """Whether models for this target can be timed on this machine."""
        return self.name == host_target()

    @property
    def label(self) -> str:
        """The name with all options, as :func:`graphopt.targets.find` takes it."""
        return f"{self.name}:{','.join(f'{key}={value}' for key, value in self.options.items())}".rstrip(":")
