"""The spec: a transformer in NumPy, every backward pass derived by hand.

Glossary, the same letters everywhere: B batch, T query length, S key length, D model width, H heads, G key-value heads,
K head width, F feed-forward width, V vocabulary, L layers.
"""
