"""From scores to a plan: what each layer can be, what it costs, and what to compare the plan with."""
