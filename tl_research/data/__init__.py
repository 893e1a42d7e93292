"""From files to uint8 batches: data sets, the split, the image check, the order of examples."""
