"""Parts that all commands share."""
