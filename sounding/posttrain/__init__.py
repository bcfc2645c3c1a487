"""Post-training: fine-tuning on conversations, GRPO against tasks, distillation of specialists.

Each is an objective and a source of batches for the trainer of `train`. Rollouts run through the
engine in the same process, or through engines elsewhere, on the weights that are being trained.
"""
