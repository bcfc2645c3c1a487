"""The protocols of clients (OpenAI, Anthropic, Ollama, llama.cpp) and their shared parts."""
