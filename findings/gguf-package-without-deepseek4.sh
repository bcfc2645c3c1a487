#!/usr/bin/env bash
# The `gguf` package of PyPI does not know the architecture that llama.cpp runs DeepSeek-V4 as.
#
# Versions: gguf 0.19.0 (the newest on PyPI on 2026-12-01), llama-cpp-python 0.3.36 (source
# distribution, with llama.cpp and its own copy of gguf-py inside).
# Expected: one list of architectures, since both are "the gguf package" of the same project.
# Seen: the copy inside llama.cpp has MODEL_ARCH.DEEPSEEK4 ("deepseek4") and its tensors; the
# package of PyPI has neither. A converter that depends on
# `gguf` from PyPI has to write the names of keys and tensors itself; GGUFWriter takes any
# architecture's name, so that the container can still be the package's.
# Output seen: "PyPI gguf 0.19.0: False", "copy in llama.cpp: True".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet --disable-pip-version-check gguf==0.19.0 scikit-build-core cmake ninja
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --no-binary :all: --dest "$folder" llama-cpp-python==0.3.36
tar --extract --gzip --directory "$folder" --file "$folder"/llama_cpp_python-0.3.36.tar.gz
copy="$folder/llama_cpp_python-0.3.36/vendor/llama.cpp/gguf-py"
known='import gguf; print("DEEPSEEK4" in gguf.MODEL_ARCH.__members__)'
published=$("$python" -c "$known")
inside=$(PYTHONPATH="$copy" "$python" -c "$known")
echo "PyPI gguf 0.19.0: $published"
echo "copy in llama.cpp: $inside"
[ "$published" = False ] && [ "$inside" = True ]
