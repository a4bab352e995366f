"""What vLLM's environment sets for the capturer, parsed once; a leaf but for the wire."""
