"""The story: a post, its figures, and a site with the annotated source, built from committed results alone."""
