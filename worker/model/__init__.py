"""Models in memory: DiffusionKit's pipelines by its own loaders, built-in small ones, layers, modulation."""
