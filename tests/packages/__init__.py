"""Builds, installs, tries and uninstalls the packages: `python -m tests.packages PYTHON ...`."""
