"""Proof by fault: the real pipeline is killed and cut off again and again, and its state compared with an oracle."""
