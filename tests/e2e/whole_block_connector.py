"""vLLM's example of a KV connector, but for the last prompt token: all before it are loaded, in whole blocks.

The example expects a decode instance to be given the first generated token in its prompt, and leaves two
tokens to compute at least. Connectors that are used leave one.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import (
    ExampleConnector,
    align_to_block_size,
)


class WholeBlockConnector(ExampleConnector):
    """Loads the blocks that are full without the last prompt token."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        found, asynchronous = super().get_num_new_matched_tokens(request, num_computed_tokens)
        if not found:
            return found, asynchronous
        whole = align_to_block_size(len(request.prompt_token_ids), self._block_size)
        return whole - num_computed_tokens, asynchronous

    def _found_match_for_prompt(self, prompt_token_ids: list[int], mm_hashes: list[str]) -> bool:
        return bool(super()._found_match_for_prompt([*prompt_token_ids, 0], mm_hashes))
