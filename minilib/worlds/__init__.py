"""What models are asked about: facts of the real world, invented authors, and a world small enough to train on."""
