"""The whole routing of a request, looked for and joined in the form that is wanted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from moescope.service.api.params.query import LARGEST
from moescope.service.api.problems import ProblemError
from moescope.service.api.schemas.trace_shapes import Depths, Form, Missing, Wish, in_form, incomplete
from moescope.service.store.interface import Store
from moescope.service.store.records import TraceQuery
from moescope.service.traces.belonging import SeveralError
from moescope.service.traces.extent import Extent
from moescope.service.traces.finding import Found, find
from moescope.service.traces.forms import Shaped, VllmShape
from moescope.service.traces.joining import Joined, join
from moescope.service.traces.plan import TooManyRunsError
from moescope.service.traces.routing import TooManyPositionsError
from moescope.service.traces.spans import span


class Asked(NamedTuple):
    """What is asked of a whole request.

    Attributes:
        name: the id, any that finds it.
        among: bounds whose traces are looked at.
        sample: the wanted one of several samples.
        layers: the layers wanted; None: all.
        first, end: the positions wanted, ``end`` not included; None: to the last.
        wish: the form.
    """

    name: str
    among: TraceQuery = TraceQuery()
    sample: int | None = None
    layers: list[int] | None = None
    first: int = 0
    end: int | None = None
    wish: Wish = Wish()


class Whole(NamedTuple):
    """A joined routing: where it comes from, and its rows in the form that was asked for."""

    joined: Joined
    routing: Shaped


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found of a request, of which nothing but runs has been read.

    Attributes:
        asked: the question.
        found: what may be joined.
        shape: with form=vllm vLLM's shape; else None.
    """

    asked: Asked
    found: Found
    shape: VllmShape | None

    @property
    def extent(self) -> Extent:
        """How large the answer is at most."""
        extent = self.found.extent
        return extent if self.shape is None else extent.grown_to(self.shape.depth)

    def read(self, most: int) -> Whole:
        """Join it; ``most`` positions at most.

        Raises:
            ProblemError: more than can be answered (400), the traces don't belong together, or positions are
                missing that the form can't say (409).
        """
        asked = self.asked
        try:
            joined = join(self.found, asked.first, asked.end, most)
        except TooManyPositionsError as error:
            raise ProblemError(400, "too-many-positions", "Too many positions", str(error)) from error
        except TooManyRunsError as error:
            raise ProblemError(400, "too-many-runs", "Too many runs", str(error)) from error
        except SeveralError as error:
            raise _several(error) from error
        if self.shape is not None and asked.wish.missing is Missing.REFUSE:
            _refuse_lost_end(joined, asked.end)
        return Whole(joined, in_form(joined.routing, asked.wish, self.shape, asked.layers, asked.name))


def look_for(asked: Asked, store: Store, depths: Depths) -> Looked | None:
    """Find what may be joined; None: there is no trace.

    Args:
        asked: the question.
        store: where to look.
        depths: what is known of the models' layers.

    Raises:
        ProblemError: there is no such sample or layer (404), or what there is doesn't belong together (409).
    """
    found = _find(asked, store, asked.layers)
    if found is None:
        return None
    if asked.wish.form is Form.MOESCOPE:
        if not found.wanted:
            raise _no_such_layer(asked.layers, f"known are {sorted(found.layers)}")
        return Looked(asked, found, None)
    main = found.parts[0].request
    known = found.layers
    deployment, shapes = (main.server, main.model), set(known.values())
    shape = depths.shape_of(deployment, shapes, asked.wish, asked.name, asked.layers)
    beyond = [number for number in asked.layers or [] if number >= shape.depth]
    if beyond:
        raise _no_such_layer(beyond, f"the model has 0 to {shape.depth - 1}")
    stages = 0 if depths.tell_all(deployment, shapes, asked.layers) else main.missing_stages
    if stages and found.may_lack_layers and asked.wish.missing is Missing.REFUSE:
        raise incomplete(main, stages, main.missing_tokens, "ask again")
    if not found.wanted:  # layers without experts only: those of one with experts tell what is computed
        again = _find(asked, store, [min(known)])
        if again is None:
            return None
        found = replace(again, asked=found.asked)
    return Looked(asked, found, shape)


def _find(asked: Asked, store: Store, layers: list[int] | None) -> Found | None:
    positions = span(asked.first, LARGEST if asked.end is None else asked.end)
    try:
        return find(store, asked.name, asked.among, positions, asked.sample, layers)
    except SeveralError as error:
        raise _several(error) from error
    except LookupError as error:
        raise ProblemError(404, "no-such-sample", "No such sample", str(error.args[0])) from error


def _refuse_lost_end(joined: Joined, end: int | None) -> None:
    """Tokens that no worker brought may be behind the last position, where nothing shows that they lack.

    Raises:
        ProblemError: so it is, or may be (409).
    """
    last, tokens = joined.routing.first + joined.routing.shape[0], joined.main.missing_tokens
    if tokens and (end is None or end > last):
        raise incomplete(joined.main, 0, tokens, f"ask again, or for those that are here with end={last}")


def _several(error: SeveralError) -> ProblemError:
    return ProblemError(
        409, "several-requests", "The traces of this id don't belong to one request", str(error)
    )


def _no_such_layer(layers: list[int] | None, known: str) -> ProblemError:
    return ProblemError(404, "no-such-layer", "No such layer", f"There is no layer {layers}; {known}.")
