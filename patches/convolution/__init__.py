"""Routes: ways to compute a convolution and its gradients without the vendor's library."""
