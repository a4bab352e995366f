"""Which blocks of the KV cache hold a request's positions, as vLLM's scheduler tells its workers.

A block is known by its number in the cache. Of several groups of layers one with full attention is followed:
its tables have a block for every position, from the first one on, and it frees none before the request ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

KV_TRANSFER: Final = "kv_transfer"
"""Why an origin isn't known: a KV connector may have loaded it."""
NO_FULL_ATTENTION: Final = "no_full_attention"
"""Why no origin is known: no group of the cache keeps a block for every position."""
UNKNOWN_CACHE: Final = "unknown_cache"
"""Why no origin is known: this vLLM, or this layout of the cache, doesn't tell whose blocks are whose."""


class BlockLayout(NamedTuple):
    """The group of the KV cache whose tables are followed.

    Attributes:
        group: its place among the groups.
        block_size: positions of a block.
        blocks: blocks of the cache; their numbers are below it.
        why: why no origin of a block can be told; else empty.
    """

    group: int = 0
    block_size: int = 1
    blocks: int = 0
    why: str = ""


class Table(NamedTuple):
    """A request whose whole table is told: it is new, or goes on after a preemption.

    Attributes:
        computed: so many leading positions are not computed for it from now on.
        blocks: the numbers of its blocks, by position.
    """

    request_id: str
    computed: int
    blocks: list[int]


class StepBlocks(NamedTuple):
    """What a step's scheduling changed in the tables of blocks.

    Attributes:
        layout: of all numbers of blocks here; another object once the cache is another.
        finished: ids that vLLM is done with; they come before the step's own.
        tables: requests whose whole table is told.
        appended: by id, blocks that were added behind the ones that the request had.
        copies: by number, blocks that the step first copies from another: of what a request needs only the
            beginning of, and goes on in by itself.
        loads: whether a KV connector loads, within the step, positions that its new requests need.
    """

    layout: BlockLayout
    finished: Sequence[str]
    tables: Sequence[Table]
    appended: Sequence[tuple[str, Sequence[int]]] = ()
    copies: Mapping[int, int] = MappingProxyType({})
    loads: bool = False


_new: Final = tuple.__new__
"""Makes a named tuple without its own function, on the path of each step."""


class BlocksHandedOn(NamedTuple):
    """vLLM's own lists of a step in which no request came or went: which blocks were appended is in them.

    vLLM makes these lists for the step alone, and changes none of them later. Nobody has looked at them yet.

    Attributes:
        layout: see `StepBlocks`.
        names: ids of the step's requests.
        given: of each request its new blocks by group, or None.
    """

    layout: BlockLayout
    names: Sequence[str]
    given: Sequence[Sequence[Sequence[int]] | None]

    def appended(self) -> list[tuple[str, Sequence[int]]]:
        """See `StepBlocks.appended`.

        Raises:
            ValueError: the lists don't fit each other.
        """
        group, given = self.layout.group, self.given
        if len(given) == len(self.names) == given.count(None):  # the usual step of few requests
            return []
        told = zip(self.names, given, strict=True)
        return [(str(name), blocks[group]) for name, blocks in told if blocks is not None and blocks[group]]


class BlockReader:
    """Reads the scheduler's output. It remembers no request.

    Args:
        vllm_config: vLLM's configuration.
    """

    def __init__(self, vllm_config: Any) -> None:
        self._config = vllm_config
        self._cache: Any = self  # no cache yet, not even none
        self._layout = BlockLayout()
        self.has_connector = getattr(vllm_config, "kv_transfer_config", None) is not None
        """Whether a KV connector may fill blocks."""
        self._caches = bool(getattr(vllm_config.cache_config, "enable_prefix_caching", True))
        self.looks = self._caches or self.has_connector
        """Whether any step may change what somebody could ask for."""

    def read(self, scheduler_output: Any, model_runner: Any) -> StepBlocks | None:
        """What a step about to run changes; None: nothing, or nothing that anybody could ask for."""
        if not self.looks:
            return None
        cache = getattr(model_runner, "kv_cache_config", None)
        if cache is not self._cache:
            self._cache, self._layout = cache, self._read_layout(cache, scheduler_output)
        layout, cached = self._layout, scheduler_output.scheduled_cached_reqs
        finished = tuple(scheduler_output.finished_req_ids)
        tables = [
            Table(str(new.req_id), int(new.num_computed_tokens), _copied(new.block_ids, layout))
            for new in scheduler_output.scheduled_new_reqs
        ]
        appended: list[tuple[str, Sequence[int]]] = []
        given = cached.new_block_ids
        if len(given) > given.count(None):  # in most steps of decode no request needs a block
            resumed = cached.resumed_req_ids
            names = cached.req_ids
            for place in [place for place, blocks in enumerate(given) if blocks is not None]:
                name, blocks = str(names[place]), given[place]
                if name in resumed:
                    computed = int(cached.num_computed_tokens[place])
                    tables.append(Table(name, computed, _copied(blocks, layout)))
                elif not layout.why and blocks[layout.group]:
                    appended.append((name, blocks[layout.group]))
        if not (tables or appended or finished):
            return None
        copies = getattr(scheduler_output, "kv_cache_block_copies", None) or ()
        return StepBlocks(
            layout,
            finished,
            tables,
            appended,
            {int(copy.dst_block_id): int(copy.src_block_id) for copy in copies},
            self.has_connector and scheduler_output.has_sync_kv_loads if not layout.why else False,
        )

    def hand_on(self, scheduler_output: Any, model_runner: Any) -> BlocksHandedOn | None:
        """What a step changes in which no request comes or goes, unread; None: `read` must be asked."""
        try:
            if self.has_connector or model_runner.kv_cache_config is not self._cache:
                return None
        except AttributeError:  # `read` knows what that means
            return None
        if getattr(scheduler_output, "kv_cache_block_copies", None):
            return None
        cached = scheduler_output.scheduled_cached_reqs
        return _new(BlocksHandedOn, (self._layout, cached.req_ids, cached.new_block_ids))

    def _read_layout(self, cache: Any, scheduler_output: Any) -> BlockLayout:
        why = self._why_not(scheduler_output)
        if why:
            return BlockLayout(why=why)
        try:
            return full_attention_layout(cache)
        except LookupError as error:
            return BlockLayout(why=str(error.args[0]))
        except Exception:  # noqa: BLE001 - traces are worth having without it
            return BlockLayout(why=UNKNOWN_CACHE)

    def _why_not(self, scheduler_output: Any) -> str:
        if not self._caches:
            return KV_TRANSFER
        if self.has_connector and not hasattr(scheduler_output, "has_sync_kv_loads"):
            return KV_TRANSFER
        if getattr(self._config.parallel_config, "prefill_context_parallel_size", 1) > 1:
            return UNKNOWN_CACHE
        return ""


def full_attention_layout(cache: Any) -> BlockLayout:
    """The group with full attention of a KV cache, vLLM's ``KVCacheConfig``.

    A group of draft layers only is taken if there is no other.

    Raises:
        LookupError: with a reason for `BlockLayout.why`.
    """
    from vllm.v1 import kv_cache_interface as kinds

    groups = cache.kv_cache_groups
    if any(getattr(spec, "prefix_replay_tokens", 0) for group in groups for spec in _specs(group)):
        # DeepSeek-V4.1: a request computes positions again whose blocks it leaves as they are.
        raise LookupError(UNKNOWN_CACHE)
    recycling = getattr(kinds, "RSWASpec", ())
    fitting = [
        place
        for place, group in enumerate(groups)
        if all(
            isinstance(spec, kinds.FullAttentionSpec)
            and not isinstance(spec, recycling)
            and getattr(spec, "prefix_cacheable", True)
            for spec in _specs(group)
        )
    ]
    if not fitting:
        raise LookupError(NO_FULL_ATTENTION)
    own = [place for place in fitting if not getattr(groups[place], "is_eagle_group", False)]
    place = (own or fitting)[0]
    group = groups[place]
    if getattr(group, "host_resident", False) or _role(group) != "default":
        raise LookupError(UNKNOWN_CACHE)  # HiSparse: blocks of a pool of its own
    return BlockLayout(place, int(group.kv_cache_spec.block_size), int(cache.num_blocks))


def received_kv(output: Any) -> bool:
    """Whether a worker's output tells the scheduler that a KV connector filled blocks, or failed to.

    Those of a request that waits for them: the worker isn't told of the request, nor of its blocks, before
    others may have found them in the prefix cache.
    """
    for name in ("_model_runner_output", "model_runner_output"):  # of asynchronous outputs
        output = getattr(output, name, output)
    told = getattr(output, "kv_connector_output", None)
    names = ("finished_recving", "failed_recving", "invalid_block_ids")
    return any(getattr(told, name, None) for name in names)


def _specs(group: Any) -> Iterable[Any]:
    """The kinds of cache of a group's layers."""
    spec = group.kv_cache_spec
    several: Mapping[str, Any] = getattr(spec, "kv_cache_specs", None) or {"": spec}
    return several.values()


def _role(group: Any) -> str:
    role = getattr(group, "role", "default")
    return str(getattr(role, "value", role))


def _copied(blocks: Sequence[Sequence[int]], layout: BlockLayout) -> list[int]:
    """The group's table; a copy, since runner V1 makes vLLM's list longer later."""
    return [] if layout.why else list(blocks[layout.group])
