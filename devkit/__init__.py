"""Test support: a real vLLM with data and expert parallelism on CPUs. Never shipped with moescope."""
