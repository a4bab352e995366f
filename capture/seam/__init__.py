"""Everything that knows vLLM's insides: what another version of vLLM changes is changed here.

Modules import vLLM inside the functions that need it. vLLM is absent where the kernels are tested on a GPU
without it, and what one version has another lacks: a name that can't be imported must cost only what needs
it. `platform` must work even where nothing else of the capturer can be imported.
"""
