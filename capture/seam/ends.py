"""Where vLLM's scheduler ends a request (``check_stop``), as far as its parameters and its tokens say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple


class Repetition(NamedTuple):
    """A request ends where its generated tokens end in a pattern that repeats.

    Attributes:
        params: vLLM's parameters of the pattern.
        prompt: tokens of the request's prompt, which are no part of the pattern.
        min_generated: with fewer generated tokens vLLM doesn't look for it.
    """

    params: Any
    prompt: int
    min_generated: int = 0


class RequestEnd(NamedTuple):
    """Where a request ends: at the first token for which one of these is true.

    Attributes:
        max_length: with this many tokens, prompt included; None: not bounded.
        stop_tokens: with the first of these that is sampled.
        repetition: with a pattern that repeats; None: vLLM doesn't look for one.
    """

    max_length: int | None = None
    stop_tokens: frozenset[int] = frozenset()
    repetition: Repetition | None = None

    def last_of(self, sampled: Sequence[int], length: int, generated: list[int] | None = None) -> int | None:
        """Which of the sampled tokens is the last of a request that had `length` tokens before, if any is.

        Args:
            sampled: the tokens of a step.
            length: the request's tokens before, prompt included.
            generated: what the request generated before, of a request with `repetition`. Tokens that it has
                not any more are removed, and the sampled ones added.

        Raises:
            LookupError: not all tokens that a pattern may be in are known, or vLLM's check isn't.
        """
        repeats = self._pattern_check(length, generated)
        for index, token in enumerate(sampled):
            at_most = self.max_length is not None and length + index + 1 >= self.max_length
            if repeats(token) or at_most or token in self.stop_tokens:
                return index
        return None

    def _pattern_check(self, length: int, generated: list[int] | None) -> Callable[[int], bool]:
        """Takes each further token of the request, and tells whether the tokens end in a pattern then."""
        if self.repetition is None:
            return lambda _: False
        params, prompt, least = self.repetition
        tokens, check = [] if generated is None else generated, _vllms_check()
        del tokens[max(0, length - prompt) :]
        if check is None or len(tokens) != length - prompt:
            raise LookupError("the tokens that a repeated pattern may be in are not known")

        def repeats(token: int) -> bool:
            tokens.append(token)
            return len(tokens) >= least and check(tokens, params)

        return repeats


NO_END: Final = RequestEnd()
"""Of a request whose end isn't known."""


def prompt_length(new_request: Any) -> int:
    """Tokens of the prompt, which may be embeddings, of one of the scheduler's new requests."""
    if new_request.prompt_token_ids is not None:
        return len(new_request.prompt_token_ids)
    return 0 if new_request.prompt_embeds is None else len(new_request.prompt_embeds)


def request_end(new_request: Any) -> RequestEnd:
    """Where one of the scheduler's new requests ends."""
    params, prompt = new_request.sampling_params, prompt_length(new_request)
    most = getattr(params, "max_tokens", None)
    stops = {*(getattr(params, "stop_token_ids", None) or ()), getattr(params, "_eos_token_id", None)}
    pattern = getattr(params, "repetition_detection", None)
    least = int(getattr(params, "min_tokens", None) or 0)
    return RequestEnd(
        None if most is None else prompt + int(most),
        frozenset(stop for stop in stops if stop is not None),
        None if pattern is None else Repetition(pattern, prompt, least),
    )


def _vllms_check() -> Callable[[Sequence[int], Any], bool] | None:
    """vLLM's own check of a repeated pattern, which its scheduler uses; None if it isn't where it was."""
    from vllm.v1.core.sched import utils

    return getattr(utils, "check_sequence_repetition", None)
