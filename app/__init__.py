"""Paceline: an LLM inference service with continuous batching."""

__version__ = "0.1.0"
