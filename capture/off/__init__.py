"""What a worker without capture reports, with nothing but the standard library."""
