"""From a frame to totals: what a producer has counted, checked, added up over its starts, split by
phase and EP rank.
"""
