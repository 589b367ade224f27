"""Batch norm and the activation behind it as one operation of autograd, which keeps its input alone."""
