"""Where a model falls apart on its target: the partitions, and the cause of each break."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphopt.backend.report import CheckReport, NodeVerdict, Place, others, parts, titled


def breaks(report: CheckReport) -> list[NodeVerdict]:
    """Return the nodes that do not run as they should, without the pairs that follow one of them."""
    odd = [node for node in report.nodes if node.why]
    causes = {node.why for node in odd if not node.is_pair}
    return [node for node in odd if not node.is_pair or node.why not in causes]


def explanation(report: CheckReport) -> list[str]:
    """Return the partitions of a model in order, and under them each break with its cause and its cure."""
    lines = [f"{report.model} on {report.target}: partitions: {parts(report.partitions)}"]
    operators = {node.name: node.op for node in report.nodes if not node.is_pair}
    for number, part in enumerate(report.partitions, start=1):
        ends = part.nodes[0] if len(part.nodes) == 1 else f"{part.nodes[0]} ... {part.nodes[-1]}"
        kinds = sorted({operators[name] for name in part.nodes if name in operators}) or ["Q/DQ pairs"]
        shown = ", ".join(kinds[:8]) + (", ..." if len(kinds) > 8 else "")
        lines.append(f"{number:4}. {part.place}: {len(part.nodes)} nodes ({shown}): {ends}")
    odd = breaks(report)
    lines.append(f"breaks: {len(odd)}" if odd else "breaks: none")
    lines += _causes(report, odd)
    if not report.partitions:
        failed = [gate for gate in report.gates if gate.passed is False]
        lines += [f"    {gate.name}: {gate.detail}" for gate in failed]
    lines += [f"note: {note}" for note in report.notes]
    if not report.verified:
        lines.append("the facts of this target come from documents: nothing here was checked on the real thing")
    return lines


def _causes(report: CheckReport, odd: Sequence[NodeVerdict]) -> list[str]:
    """Return a line for each cause of breaks, with what would cure it, and what is known of the model's ends."""
    cures = {finding.node: finding.hint for finding in report.findings if finding.hint}
    alike: dict[tuple[str, str], list[NodeVerdict]] = {}
    for node in odd:
        alike.setdefault((f"{_fate(node)}: {node.why}", cures.get(node.name) or ""), []).append(node)
    lines = []
    for (text, cure), found in alike.items():
        lines.append(f"    {titled(found[0])} {text}{others(found)}")
        lines += [f"        cure: {cure}"] * bool(cure)
    names = {node.name for node in report.nodes}
    for finding in report.findings:
        if finding.node not in names:
            lines.append(f"    {finding.node or 'model'}: {finding.message}")
            lines += [f"        cure: {finding.hint}"] * bool(finding.hint)
    return lines


def _fate(node: NodeVerdict) -> str:
    if node.place is Place.HOST:
        return "runs on the CPU"
    return f"runs in {node.dtype}" if node.dtype else "is refused"


def before_and_after(reports: Sequence[CheckReport]) -> str:
    """Return one model's explanation, or two and what changed between them."""
    text = "\n\n".join("\n".join(explanation(report)) for report in reports)
    if len(reports) < 2:
        return text
    rows = [
        ("partitions", [len(report.partitions) for report in reports]),
        ("nodes on the CPU", [sum(node.place is Place.HOST for node in report.nodes) for report in reports]),
        ("breaks", [len(breaks(report)) for report in reports]),
    ]
    changes = "\n".join(f"{name}: {before} -> {after}" for name, (before, after) in rows)
    return f"{text}\n\n{changes}"


def to_json(report: CheckReport) -> dict[str, Any]:
    """Return the partitions and breaks as plain values."""
    whole = report.to_json()
    kept = ("model", "target", "verified", "toolchain", "versions", "partitions", "findings", "notes")
    names = {node.name for node in breaks(report)}
    return {
        **{key: whole[key] for key in kept},
        "breaks": [node for node in whole["nodes"] if node["name"] in names],
    }
