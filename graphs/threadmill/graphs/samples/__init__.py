"""Graphs that do real work; only assistant needs a key and a network."""
