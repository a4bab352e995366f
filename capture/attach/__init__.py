"""How capture gets into vLLM's worker: as the class that vLLM is told, or into the one that it has."""
