"""A fleet on paper: the product's own scheduling code on a clock that only events move."""
