"""One file per claim; each prints one JSON object. ``lmfuse-bench NAME`` or ``python -m benchmarks.NAME``."""
