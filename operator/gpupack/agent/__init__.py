"""`gpupack agent`: what NVML and /proc know of a node's GPUs and of the processes on them, as Prometheus series.

It reads and tells; it changes nothing, asks the API server nothing, and decides nothing.
"""
