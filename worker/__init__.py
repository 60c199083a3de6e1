"""Runs tasks on a Mac's GPU (or a CPU) with MLX; the only package that imports mlx or diffusionkit."""
