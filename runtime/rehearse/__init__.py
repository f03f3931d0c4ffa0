"""Rehearsals: the whole product, faults around a stream, and an hour of cameras that come and go."""
