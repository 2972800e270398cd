"""The test-time regression laboratory: attention as a fit to the keys and values so far."""
