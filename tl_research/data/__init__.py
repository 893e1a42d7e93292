"""Files to uint8 batches: named data sets, the split, the image check, the order of examples."""
