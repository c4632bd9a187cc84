"""The laboratory: corpora, training, checkpoints, generation, and pictures of what was learned."""
