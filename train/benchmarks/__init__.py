"""`twinformer bench`: how quick the twins are, beside others that do the same work."""
