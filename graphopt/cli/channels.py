"""``graphopt show --channels``: which channels of a model can be pruned together, and why others cannot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from graphopt.analysis import AnalysisManager
from graphopt.analysis.channels import Channels, Group, Pin, Use
from graphopt.ir import Editor, Model

_NAMES = 2
_EXAMPLES = 3


def channel_facts(model: Model) -> dict[str, Any]:
    """Return the groups and the pinned axes of a model as JSON has them."""
    found = AnalysisManager(Editor(model)).get(Channels)
    return {
        "groups": [_group(group) for group in found.groups],
        "pinned": [_pin(pin, found.sizes[pin.axis]) for pin in found.pins],
    }


def _group(group: Group) -> dict[str, Any]:
    first = (group.writers or group.readers)[:1]
    owned = len(first[0].member.positions) if first else len(group.members[0].positions)
    return {
        "index": group.index,
        "units": group.units,
        "channels_per_unit": owned // group.units,
        "parameters_per_unit": group.parameters,
        "normalized": group.normalized,
        "writers": _names(group.writers),
        "readers": _names(group.readers),
    }


def _names(uses: Iterable[Use]) -> list[str]:
    """Return the layers by name, or by their first output where they have none."""
    return list(dict.fromkeys(use.node.name or use.node.outputs[0].name or "?" for use in uses))


def _pin(pin: Pin, size: int) -> dict[str, Any]:
    node = None if pin.node is None else pin.node.name or pin.node.outputs[0].name
    return {"value": pin.axis.value.name, "axis": pin.axis.axis, "size": size, "why": pin.why, "node": node}


def channel_text(facts: dict[str, Any]) -> str:
    """Return the facts as text: a line a group, and a line a reason."""
    groups, pinned = facts["groups"], facts["pinned"]
    lines = [f"{len(groups)} groups, {sum(group['units'] for group in groups):,} units that can go one by one"]
    if groups:
        lines.append(f"{'group':>5} {'units':>10} {'saves/unit':>10}  written by -> read by")
    lines += [_group_line(group) for group in groups]
    by_why: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for pin in pinned:
        by_why[pin["why"]].append(pin)
    lines.append(f"{len(pinned):,} axes are pinned themselves")
    # What happens everywhere (a convolution slides over its image) says least, and stands last.
    lines += [_pin_line(why, pins) for why, pins in sorted(by_why.items(), key=lambda item: len(item[1]))]
    if any("computed" in why for why in by_why):
        lines.append("hint: the preset lossless turns much that a model computes into constants: run it first")
    return "\n".join(lines)


def _group_line(group: dict[str, Any]) -> str:
    owned = group["channels_per_unit"]
    units = f"{group['units']} x {owned}" if owned > 1 else str(group["units"])
    route = f"{_some(group['writers'], _NAMES)} -> {_some(group['readers'], _NAMES)}"
    note = " (normalized over)" if group["normalized"] else ""
    return f"{group['index']:>5} {units:>10} {group['parameters_per_unit']:>10,}  {route}{note}"


def _pin_line(why: str, pins: list[dict[str, Any]]) -> str:
    places = _some([f"{pin['value']}[{pin['axis']}]" for pin in pins], _EXAMPLES)
    return f"{len(pins):>5}  {why}: {places}"


def _some(names: Sequence[str], limit: int) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "no weights") + more
