"""The engine of `denoise`."""
