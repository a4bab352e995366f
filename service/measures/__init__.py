"""The measures of balance and of drift: pure functions of arrays."""
