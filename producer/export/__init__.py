"""A plan becomes a model: files that MLX tools read, and a README that says what it is."""
