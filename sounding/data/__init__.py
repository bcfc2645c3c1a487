"""Text for training: documents gathered, cleaned and split; tokens packed into batches.

A corpus is compressed JSONL (corpus.py), a dataset is its tokens in one flat file (dataset.py), and
the loader turns a dataset into batches, each with the state to resume after it (loader.py). Nothing
here depends on the network.
"""
