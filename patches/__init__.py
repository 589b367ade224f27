"""Makes PyTorch train where the vendor's convolution library is missing. Needs torch alone."""
