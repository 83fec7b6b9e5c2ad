"""Measuring results against ground truth."""
