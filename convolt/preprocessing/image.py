"""`from convolt.preprocessing.image import ImageDataGenerator`, where Keras's programs have `keras.preprocessing.image`."""

from convolt.data.image_generator import ImageDataGenerator

__all__ = ["ImageDataGenerator"]
