"""The process that watches a training: starts it, decides about it when it fails, says how it is."""
