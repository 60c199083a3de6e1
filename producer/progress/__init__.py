"""How far a run is: rates, times left, who is at work."""
