"""`gpupack doctor`: whether a cluster is one that gpupack can work in, told before anything is installed."""
