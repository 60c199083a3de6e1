"""Quantized models as files: written by a program that the producer starts, and read again."""
