"""The proof: is the plan's picture nearer to the original's than its rivals' are?"""
