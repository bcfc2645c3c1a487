"""Text for training: documents gathered, cleaned and split; tokens packed into batches.

A corpus is compressed JSONL anyone can read (corpus.py), a dataset is its tokens in one flat file
(dataset.py), and the loader turns a dataset into batches, each with the state that resumes after
it (loader.py). Nothing here knows the network.
"""
