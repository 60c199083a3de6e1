"""What a layer's quantization does to the output: exactly, or by a sketch of all layers at once."""
