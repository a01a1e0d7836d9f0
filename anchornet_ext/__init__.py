"""Patch-based dynamic image classification: a glance, then a few localised patches."""
