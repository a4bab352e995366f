"""From traced rows to routing traces: assembled off the step's path, buffered within a bound, sent."""
