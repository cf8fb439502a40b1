"""Image files and stacks of images: read at full depth, and written with all else unchanged."""
