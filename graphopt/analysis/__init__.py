"""Facts about a model that passes ask for by class: computed on demand, cached, dropped when the model changes."""

from graphopt.analysis.cost import Cost
from graphopt.analysis.manager import Analysis, AnalysisManager, Evaluate
from graphopt.analysis.shapes import Shapes

__all__ = ["Analysis", "AnalysisManager", "Cost", "Evaluate", "Shapes"]
