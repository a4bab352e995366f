"""From routing calls to counts on the device: strategies, kernels and their torch reference."""
