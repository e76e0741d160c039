"""Hostile tasks. Each has a bound of its own, so that a sandbox that fails harms no machine."""
