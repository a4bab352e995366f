"""Baselines: the routing of a window, pinned under a name to compare later routing with."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
import numpy as np

from moescope.capture.wire import MoeLayer, pack_counts, unpack_counts
from moescope.service.counts.phase_split import Phase
from moescope.service.drift.measure import LayerSlots
from moescope.service.live.producers import Deployment
from moescope.service.store.records import Document
from moescope.service.windows.layer_window import LayerWindow
from moescope.service.windows.window import ModelWindow

KIND: Final = "baseline"
PREVIOUS_HOUR: Final = "previous_hour"
"""The name that stands for the hour before the window; no baseline can have it."""
MAX_BASELINES: Final = 64

_log = logging.getLogger(__name__)


class BaselineError(Exception):
    """A baseline that can't be pinned; ``kind`` is a slug, the message says what to do."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class Baseline(msgspec.Struct, frozen=True):
    """Slots by expert of a deployment in a window.

    Attributes:
        start, end: when the totals it was made from were true, seconds of Unix time.
        pinned_at: when it was made.
        tokens: computed in the window.
        layers: the L layers that were seen, rising.
        counts: slots per (layer, expert), raw little-endian int64, one layer after the other.
        rows: tokens seen in each layer, raw little-endian int64 [L].
        decode_counts, decode_rows: ``counts`` and ``rows`` of decode tokens only; None where the phases were
            not known.
        weights_at: when the model's weights were changed last before the window's end, seconds of Unix time;
            0: they weren't, or an earlier moescope pinned it.
    """

    server: str
    model: str
    name: str
    note: str
    start: float
    end: float
    pinned_at: float
    tokens: int
    layers: tuple[MoeLayer, ...]
    counts: bytes
    rows: bytes
    decode_counts: bytes | None = None
    decode_rows: bytes | None = None
    weights_at: float = 0.0

    @property
    def deployment(self) -> Deployment:
        """(server, model)."""
        return self.server, self.model

    def check(self) -> None:
        """Check that its arrays fit its layers.

        Raises:
            ValueError: they don't.
        """
        sizes = 8 * sum(layer.num_experts for layer in self.layers), 8 * len(self.layers)
        pairs = [(self.counts, self.rows)]
        if self.decode_counts is not None and self.decode_rows is not None:
            pairs.append((self.decode_counts, self.decode_rows))
        for counts, rows in pairs:
            if (len(counts), len(rows)) != sizes:
                raise ValueError(f"{len(counts)} and {len(rows)} bytes of counts and rows, not {sizes}")

    def slots(self, phase: Phase | None = None) -> LayerSlots | None:
        """Its slots of a phase, or of both; None where the phases were not known when it was pinned."""
        counts, rows = unpack_counts(self.counts), unpack_counts(self.rows)
        if phase is not None:
            if self.decode_counts is None or self.decode_rows is None:
                return None
            decode = unpack_counts(self.decode_counts), unpack_counts(self.decode_rows)
            counts, rows = decode if phase is Phase.DECODE else (counts - decode[0], rows - decode[1])
        ends = np.cumsum([layer.num_experts for layer in self.layers])[:-1]
        ids = [layer.layer for layer in self.layers]
        return LayerSlots(
            dict(zip(ids, np.split(counts, ends), strict=True)), dict(zip(ids, rows.tolist(), strict=True))
        )

    def why_other_weights(self, changed: float, end: float) -> str | None:
        """Why it is of other weights than a window; None: it isn't, as far as that is known.

        Args:
            changed: when the weights of the window's end came; 0: they never changed.
            end: when the window ends, in seconds of Unix time as well.
        """
        if changed >= self.end or self.weights_at >= end:
            return (
                f"other weights: the model's weights were changed between {self.name} and the window; "
                "weights=all compares them all the same"
            )
        return None

    def document(self) -> Document:
        """For the store."""
        return Document(KIND, _name_of(self.deployment, self.name), msgspec.msgpack.encode(self))


def baseline_of(
    window: ModelWindow,
    decode: ModelWindow,
    name: str,
    note: str,
    now: float,
    min_tokens: int,
    weights_at: float = 0.0,
) -> Baseline:
    """Make a baseline of a window; ``decode`` is that window of decode tokens only.

    Raises:
        BaselineError: it has too few tokens to compare anything with, or no layer whose rows add up.
    """
    seen = [layer for layer in window.layers if layer.not_seen is None and layer.counts.any()]
    broken = next((layer.not_conserved for layer in seen if layer.not_conserved), None)
    seen = [layer for layer in seen if not layer.not_conserved]
    if broken is not None and not seen:
        raise BaselineError("not-conserved", f"No layer can be compared with: {broken}.")
    if window.tokens < max(min_tokens, 1) or not seen:
        raise BaselineError(
            "too-few-tokens",
            f"The window has {window.tokens} tokens, a baseline needs {max(min_tokens, 1)}: make it longer.",
        )
    counts, rows = _packed(seen)
    of_decode = {layer.shape.layer: layer for layer in decode.layers}
    phased = decode.phase_reason is None and all(not layer.unphased for layer in decode.layers)
    decode_counts, decode_rows = (
        _packed([of_decode[layer.shape.layer] for layer in seen]) if phased else (None, None)
    )
    return Baseline(
        server=window.server,
        model=window.model,
        name=name,
        note=note,
        start=window.used.start_earliest,
        end=window.used.end_latest,
        pinned_at=now,
        tokens=window.tokens,
        layers=tuple(layer.shape for layer in seen),
        counts=counts,
        rows=rows,
        decode_counts=decode_counts,
        decode_rows=decode_rows,
        weights_at=weights_at,
    )


def _packed(layers: Sequence[LayerWindow]) -> tuple[bytes, bytes]:
    """Slots per expert and tokens of some layers, as the baseline has them."""
    rows = np.array([int(layer.rows.sum()) for layer in layers], dtype=np.int64)
    return pack_counts(np.concatenate([layer.counts for layer in layers])), pack_counts(rows)


class BaselineBook:
    """All baselines, in memory; safe for threads. Whoever changes it keeps the change in the store too."""

    def __init__(self, kept: Iterable[tuple[str, bytes]] = ()) -> None:
        """``kept``: names and contents of the store's documents; a damaged one is logged and left out."""
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, str], Baseline] = {}
        self._changes = 0
        for name, content in kept:
            found = _read(name, content)
            if found is not None:
                self._known[(found.server, found.model, found.name)] = found

    @property
    def changes(self) -> int:
        """How often it was changed."""
        with self._lock:
            return self._changes

    def all(self) -> list[Baseline]:
        """Every one, by deployment and name."""
        with self._lock:
            return [self._known[key] for key in sorted(self._known)]

    def of(self, deployment: Deployment) -> list[Baseline]:
        """Those of a deployment, by name."""
        return [item for item in self.all() if item.deployment == deployment]

    def get(self, deployment: Deployment, name: str) -> Baseline | None:
        """The one of this name, or None."""
        with self._lock:
            return self._known.get((*deployment, name))

    def check_room(self, deployment: Deployment, name: str) -> None:
        """Check that another can be pinned.

        Raises:
            BaselineError: there are too many.
        """
        with self._lock:
            if len(self._known) >= MAX_BASELINES and (*deployment, name) not in self._known:
                raise BaselineError(
                    "too-many-baselines",
                    f"There are {MAX_BASELINES} baselines already: remove one (DELETE /v1/baselines/NAME).",
                )

    def pin(self, baseline: Baseline) -> None:
        """Add a baseline, in place of one of the same name."""
        with self._lock:
            self._known[(*baseline.deployment, baseline.name)] = baseline
            self._changes += 1

    def heed(self, changed: Iterable[Document]) -> None:
        """Take in what any service that shares the store has pinned or removed."""
        for document in changed:
            found = None if document.content is None else _read(document.name, document.content)
            with self._lock:
                mine = next((key for key in self._known if _name_of(key[:2], key[2]) == document.name), None)
                if (None if mine is None else self._known[mine]) == found:
                    continue
                if mine is not None:
                    del self._known[mine]
                if found is not None:
                    self._known[(*found.deployment, found.name)] = found
                self._changes += 1

    def remove(self, deployment: Deployment, name: str) -> None:
        """Remove a baseline, if it is there."""
        with self._lock:
            self._known.pop((*deployment, name), None)
            self._changes += 1


def _read(name: str, content: bytes) -> Baseline | None:
    """A baseline that was kept; a damaged one is logged and None."""
    try:
        found = msgspec.msgpack.decode(content, type=Baseline)
        found.check()
    except (msgspec.MsgspecError, ValueError) as error:
        _log.warning("the baseline %s in the store can't be read and is left out: %s", name, error)
        return None
    return found


def removal(deployment: Deployment, name: str) -> Document:
    """The document that tells the store that a baseline is gone."""
    return Document(KIND, _name_of(deployment, name), None)


def _name_of(deployment: Deployment, name: str) -> str:
    return json.dumps([*deployment, name])
