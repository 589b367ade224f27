"""Predicting anything: pictures, folders, archives, videos and cameras, and what is written of them."""
