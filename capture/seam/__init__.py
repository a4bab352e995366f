"""Everything that knows vLLM's insides: what another version of vLLM changes is changed here."""
