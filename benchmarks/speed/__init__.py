"""Speed as a ratio to a stated reference, interleaved in one run."""
