"""Where vLLM's scheduler ends a request (``check_stop``), as far as its parameters and its tokens say.

The worker hears that vLLM is done with a request, and not why. What ends a request by its tokens can be told
from its parameters. What ends it otherwise can be told where only one thing is left: an abort. A stop string
is found by vLLM's front end, which then aborts the request, or gives ``stop`` as the reason of one that was
at its greatest length. So of requests with stop strings nothing is told but a stop token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from moescope.capture.protocol import MAX_TEXT

Finish = Literal["", "stop", "length", "abort", "repetition"]
"""How a request ended, in vLLM's words; empty: it isn't known."""


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


class Limits(NamedTuple):
    """What ends requests of a server, whatever their parameters are.

    Attributes:
        max_length: tokens of a request at most, prompt included; None: not known.
        may_fail: whether the server may end a request because something failed that the worker doesn't see.
    """

    max_length: int | None = None
    may_fail: bool = True


class LastToken(NamedTuple):
    """A request's last token.

    Attributes:
        place: which of the sampled tokens it is.
        reason: why the request ends with it; empty: a client may be told another reason.
    """

    place: int
    reason: Finish


class RequestEnd(NamedTuple):
    """Where a request ends: at the first token for which one of these is true.

    Attributes:
        max_length: with this many tokens, prompt included; None: not bounded.
        stop_tokens: with the first of these that is sampled.
        repetition: with a pattern that repeats; None: vLLM doesn't look for one.
        certain: whether a request that ends by its length or by a pattern can't be told ``stop`` instead.
        otherwise: why vLLM is done with a request that none of these has ended; empty: there may be several
            reasons.
    """

    max_length: int | None = None
    stop_tokens: frozenset[int] = frozenset()
    repetition: Repetition | None = None
    certain: bool = False
    otherwise: Finish = ""

    def last_of(self, sampled: Sequence[int], length: int, generated: list[int] | None = None) -> int | None:
        """See `last_token`: which of the sampled tokens it is, or None."""
        found = self.last_token(sampled, length, generated)
        return None if found is None else found.place

    def last_token(
        self, sampled: Sequence[int], length: int, generated: list[int] | None = None
    ) -> LastToken | None:
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
            repeated = repeats(token)
            at_most = self.max_length is not None and length + index + 1 >= self.max_length
            if token in self.stop_tokens:  # in the order of vLLM's check
                return LastToken(index, "stop")
            if at_most:
                return LastToken(index, "length" if self.certain else "")
            if repeated:
                return LastToken(index, "repetition" if self.certain else "")
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


NO_LIMITS: Final = Limits()
"""Of a server whose configuration isn't known."""
ReadLimits = Callable[[], Limits]


def read_limits(vllm_config: Any) -> Limits:
    """What ends requests of a server, whatever their parameters are.

    A request fails where a KV connector can't load what it promised, unless vLLM computes it anew then.
    vLLM may lower the greatest length once it knows its memory (``--max-model-len auto``), which is after the
    model is loaded: read this when a request begins.
    """
    transfer = getattr(vllm_config, "kv_transfer_config", None)
    fails = transfer is not None and getattr(transfer, "kv_load_failure_policy", None) != "recompute"
    most = getattr(vllm_config.model_config, "max_model_len", None)
    return Limits(None if most is None else int(most), fails)


def limits_of(vllm_config: Any) -> ReadLimits:
    """Reads the limits of a server, as `read_limits`, each time that it is called."""
    return partial(read_limits, vllm_config)


def lora_name(new_request: Any) -> str:
    """The name of the LoRA adapter of one of the scheduler's new requests; empty: none.

    A name longer than the wire takes is cut.
    """
    adapter = getattr(new_request, "lora_request", None)
    return "" if adapter is None else str(adapter.lora_name)[:MAX_TEXT]


def request_end(new_request: Any, limits: Limits = NO_LIMITS) -> RequestEnd:
    """Where one of the scheduler's new requests ends."""
    params, prompt = new_request.sampling_params, prompt_length(new_request)
    tokens = getattr(params, "max_tokens", None)
    bounds = [limits.max_length, None if tokens is None else prompt + int(tokens)]
    stops = {*(getattr(params, "stop_token_ids", None) or ()), getattr(params, "_eos_token_id", None)}
    pattern = getattr(params, "repetition_detection", None)
    least = int(getattr(params, "min_tokens", None) or 0)
    certain = _ends_by_its_tokens(params)
    return RequestEnd(
        min((bound for bound in bounds if bound is not None), default=None) if tokens is not None else None,
        frozenset(stop for stop in stops if stop is not None),
        None if pattern is None else Repetition(pattern, prompt, least),
        certain,
        "abort" if certain and not limits.may_fail and not _may_fail(new_request) else "",
    )


def _ends_by_its_tokens(params: Any) -> bool:
    """Whether nothing in a request's parameters ends it but its tokens, all of which are known.

    The parameters of old versions don't hold the model's own stop token.
    """
    if params is None or getattr(params, "stop", None):
        return False
    return hasattr(params, "_eos_token_id") or bool(getattr(params, "ignore_eos", False))


def _may_fail(new_request: Any) -> bool:
    """Whether vLLM may end a request with an error: a grammar may refuse a token, an image may be missing."""
    params = new_request.sampling_params
    grammar = [getattr(params, name, None) for name in ("structured_outputs", "guided_decoding")]
    return any(item is not None for item in grammar) or bool(getattr(new_request, "mm_features", None))


def _vllms_check() -> Callable[[Sequence[int], Any], bool] | None:
    """vLLM's own check of a repeated pattern, which its scheduler uses; None if it isn't where it was."""
    from vllm.v1.core.sched import utils

    return getattr(utils, "check_sequence_repetition", None)
