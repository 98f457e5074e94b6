"""Parts of the soak study."""
