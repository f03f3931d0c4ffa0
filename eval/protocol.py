"""What an evaluation was measured under, and in what two of them differ."""

# What two runs of the same protocol may differ in: who is measured, on what machine, and the figures themselves.
# A key that is not here must be equal.
FREE = {
    "engine", "engine_sha256", "backend", "backends", "precision", "device", "provider", "providers", "machine",
    "threads", "workers", "versions", "date", "annotations", "poses", "poses_suppressed", "detector_recall",
    "detector_backend", "weights",
}


def protocol_differences(first, second, free=FREE):
    """What two protocols measure differently: list of "key: first's value / second's value", empty where nothing.

    Args:
        first, second: dicts of metrics.json.
        free: keys that may differ; times may in any case.
    """
    free = free | {key for key in first.keys() | second.keys() if "ms_per" in key or "seconds" in key}
    if any(key in first and key in second for key in ("detector_sha256", "detections_sha256")):
        free = free | {"boxes"}  # the path of detector or detections; their content decides
    return [f"{key}: {_short(first.get(key, 'none'))} / {_short(second.get(key, 'none'))}"
            for key in sorted(first.keys() | second.keys())
            if key not in free and first.get(key) != second.get(key)]


def _short(value):
    """Hashes by their first digits, so that a line stays a line."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
