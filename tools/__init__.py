"""Helpers for working on this repository: a real ComfyUI for the demo and the tests. Not part of the node pack."""
