"""The challenge's numbers, and pictures of them."""
