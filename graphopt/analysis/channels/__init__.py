"""Channel dependencies: which positions of which axes of a model can only be removed together, and which cannot be."""

from graphopt.analysis.channels.analysis import Channels, HeadDimensions
from graphopt.analysis.channels.types import Axis, BoolArray, Group, IntArray, Member, Pin, Use

__all__ = ["Axis", "BoolArray", "Channels", "Group", "HeadDimensions", "IntArray", "Member", "Pin", "Use"]
