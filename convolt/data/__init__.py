"""Where batches come from: sets, folders of pictures, decoding. Imports nothing of layers, models or training."""
