"""Image files and stacks of images: read at their full depth, and written as they were."""
