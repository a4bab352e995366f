"""What a release takes: ``python -m devkit.release --help``. The steps are in docs/release.md."""
