"""What this computer is: what the kernel and PyTorch say of it, its cards and sensors, checks of it."""
