"""From a frame to totals: what a producer counted is checked, added up over its starts, and split."""
