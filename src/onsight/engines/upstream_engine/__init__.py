"""The upstream engine: the same requests and events, answered by another program that speaks OpenAI's API."""

from onsight.engines.upstream_engine.child import Child, ChildCommand, Patience
from onsight.engines.upstream_engine.connection import Address
from onsight.engines.upstream_engine.engine import UpstreamEngine, UpstreamSettings
from onsight.engines.upstream_engine.watch import Watch

__all__ = ["Address", "Child", "ChildCommand", "Patience", "UpstreamEngine", "UpstreamSettings", "Watch"]
