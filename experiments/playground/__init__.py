"""What the page of `demo` shows."""
