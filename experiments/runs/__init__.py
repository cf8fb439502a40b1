"""Runs and trained networks: trained, resumed, written and loaded."""
