"""The proof: is the plan's picture nearer to the original's than those of the models that it is up against?"""
