"""A plan becomes a model: files that MLX tools read, and a model card."""
