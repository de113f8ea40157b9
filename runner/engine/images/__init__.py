"""The three images: what goes into them, how they are written, what the lock says they are."""
