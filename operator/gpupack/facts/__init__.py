"""The nouns of gpupack: GPUs, language models, servings, what was observed, and what is planned already."""
