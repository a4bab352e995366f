"""A real service, as in the service's own tests."""

from tests.service.conftest import _no_settings_from_outside, clock, start_service

__all__ = ["_no_settings_from_outside", "clock", "start_service"]
