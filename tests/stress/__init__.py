"""Long trials of what must never happen; the tests run a small version of each."""
