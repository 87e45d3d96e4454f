"""gpupack packs vLLM replicas of small language models onto a GPU until its memory bandwidth saturates."""

__version__ = "0.1.0"
