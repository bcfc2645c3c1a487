"""The protocols that clients speak (OpenAI, Anthropic, Ollama, llama.cpp) and what they share."""
