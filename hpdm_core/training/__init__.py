"""Training: the loop, optimisers, weight averages, checkpoints, and the run around them."""
