"""Pipelines of passes: what a pass is, how pipelines are written, and how they are run."""

from graphopt.pipeline.base import Changes, Pass, PassContext, Rewrite, option
from graphopt.pipeline.manager import Instrument, PassRecord, Run, run_pipeline
from graphopt.pipeline.registry import lookup, passes
from graphopt.pipeline.spec import Fixpoint, Pipeline, from_toml, load_config, load_preset, parse, presets, to_toml

__all__ = [
    "Changes",
    "Fixpoint",
    "Instrument",
    "Pass",
    "PassContext",
    "PassRecord",
    "Pipeline",
    "Rewrite",
    "Run",
    "from_toml",
    "load_config",
    "load_preset",
    "lookup",
    "option",
    "parse",
    "passes",
    "presets",
    "run_pipeline",
    "to_toml",
]
