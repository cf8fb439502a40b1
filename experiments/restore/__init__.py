"""The engine of `denoise`: finds files, denoises them in batches, and writes them."""
