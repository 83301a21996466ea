"""The built-in world: pictures of coloured shapes with captions."""

from ._make import make_world as make_world, WorldSummary as WorldSummary
