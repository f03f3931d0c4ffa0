"""Streaming of camera and video frames through a person detector and a pose engine."""

__version__ = "0.1.0"
