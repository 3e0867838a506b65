"""Experiments with what a code is charged, and with what is asked of a decoder instead."""
