"""A real service, as in the service's own tests."""

from tests.service.conftest import clock, no_settings_from_outside, start_service

__all__ = ["clock", "no_settings_from_outside", "start_service"]
