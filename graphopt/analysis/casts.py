"""Which element types hold all values of which others, and what that means for Casts in a row."""

from __future__ import annotations

from graphopt.ir import DataType

_FLOATS = {  # bits of precision, largest exponent
    DataType.FLOAT16: (11, 15),
    DataType.BFLOAT16: (8, 127),
    DataType.FLOAT: (24, 127),
    DataType.DOUBLE: (53, 1023),
}
_INTEGERS = {  # bits of magnitude, whether there is a sign
    DataType.BOOL: (1, False),
    DataType.UINT8: (8, False),
    DataType.UINT16: (16, False),
    DataType.UINT32: (32, False),
    DataType.UINT64: (64, False),
    DataType.INT8: (7, True),
    DataType.INT16: (15, True),
    DataType.INT32: (31, True),
    DataType.INT64: (63, True),
}


def holds_exactly(wide: DataType, narrow: DataType) -> bool:
    """Tell whether a Cast from ``narrow`` to ``wide`` keeps every value, so that casting back gives it again."""
    if wide == narrow:
        return True
    if narrow in _INTEGERS and wide in _INTEGERS:
        (bits, signed), (room, has_sign) = _INTEGERS[narrow], _INTEGERS[wide]
        return wide != DataType.BOOL and bits <= room and (has_sign or not signed)
    if narrow in _INTEGERS and wide in _FLOATS:
        bits, (precision, exponent) = _INTEGERS[narrow][0], _FLOATS[wide]
        return bits <= precision and bits <= exponent
    if narrow in _FLOATS and wide in _FLOATS:
        return all(a <= b for a, b in zip(_FLOATS[narrow], _FLOATS[wide], strict=True))
    return False


def first_cast_is_needless(source: int, middle: int, last: int) -> bool:
    """Tell whether casting ``source`` to ``middle`` and then to ``last`` is casting ``source`` to ``last``.

    Types are ONNX's numbers. Conversions whose result ONNX leaves open (a float out of an integer's range) count as
    different unless the values go back where they came from.
    """
    start, between, end = DataType(source), DataType(middle), DataType(last)
    if not holds_exactly(between, start):
        return False
    if start == end or holds_exactly(end, start):
        return end in _INTEGERS or end in _FLOATS
    if start in _INTEGERS and between in _INTEGERS:
        return end in _INTEGERS or end in _FLOATS
    return end in _FLOATS or (end == DataType.BOOL and start in _FLOATS and between in _FLOATS)
