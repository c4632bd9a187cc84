"""The proof that reference_numpy and torch_impl are the same function, and the instruments it needs."""
