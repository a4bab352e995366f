"""The capturer: counts, inside the vLLM worker, which experts every token of every layer went to."""
