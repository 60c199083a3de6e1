"""`worker doctor`: shows what this machine can be trusted with, before it joins a fleet."""
