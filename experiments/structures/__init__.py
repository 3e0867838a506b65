"""Structures: each a script of one idea, composed from the library."""
