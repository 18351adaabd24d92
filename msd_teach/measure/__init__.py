"""Figures of merit, each with a referee in the tests."""
