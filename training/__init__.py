"""Makes the demo model: a grammar of pictures, their renderer, and the training of each part."""
