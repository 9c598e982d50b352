"""Weights of several checkpoints, streamed from disk to disk through any merge method."""
