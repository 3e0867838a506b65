"""Sweeps over how disentangled a code is."""
