"""Offline evaluation: public protocols, real baselines, and the metrics that a gate cannot see."""
