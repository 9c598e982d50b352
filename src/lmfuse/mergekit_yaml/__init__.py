"""mergekit's YAML, the dialect that people know for merges: read as recipes of ours and written from them. Nothing of mergekit is needed for it."""
