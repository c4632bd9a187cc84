"""The twin: the spec's rooms in PyTorch, with the same names and layouts, built to train on CPU, CUDA and MPS."""
