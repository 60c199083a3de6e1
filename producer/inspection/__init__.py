"""What a quantized MLX checkpoint holds, told from the headers of its files."""
