"""What does a source say about each of the target's tokens?  Methods: arrays in, an ``Alignment`` out.

Read in this order: ``spans`` (where the tokens of two tokenizers lie on the same bytes), ``pair`` (what two vocabularies mean to each
other), ``byte_law`` (the default), ``project`` (candidates into another vocabulary), ``join`` with the maps ``exact``, ``first_piece``,
``pieces``, ``min_ed`` and ``co_occurrence``, ``chunks`` (spans between common boundaries), and ``dtw`` (FuseLLM and FuseChat as published).
"""
