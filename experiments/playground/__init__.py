"""The page of `demo`: what it computes, what is on it, and what users upload."""
