"""The capturer's settings, parsed once from the environment of vLLM."""
