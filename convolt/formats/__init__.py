"""Files of models: reading and writing, without pickle."""

from convolt.formats.safetensors import load_model, load_weights, save_model, save_weights

__all__ = ["load_model", "load_weights", "save_model", "save_weights"]
