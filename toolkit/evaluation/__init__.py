"""The challenge's numbers, and what lies below them."""
