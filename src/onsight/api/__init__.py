"""The HTTP face: wire JSON in, tasks called, wire JSON out. Never imports an engine."""
