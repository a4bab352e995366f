"""All faults, by name; each is in the module of the place where it strikes."""

from __future__ import annotations

from typing import Final

from tests.e2e.host.faults_at_opening import AT_OPENING
from tests.e2e.host.faults_in_sending import IN_SENDING
from tests.e2e.host.faults_in_steps import IN_STEPS
from tests.e2e.host.faults_of_the_world import OF_THE_WORLD
from tests.e2e.host.injecting import Case

CASES: Final[dict[str, Case]] = {**AT_OPENING, **IN_STEPS, **IN_SENDING, **OF_THE_WORLD}
