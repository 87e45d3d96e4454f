"""The digital twin: vLLM engines stepped through kernel phases that share a GPU. A second opinion on the advisor."""
