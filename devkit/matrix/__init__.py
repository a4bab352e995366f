"""Every supported release of vLLM, run on this machine's CPUs: `make matrix`."""
