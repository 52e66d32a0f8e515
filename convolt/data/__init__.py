"""Where batches come from: sets, folders of pictures, decoding. Imports nothing of layers, models or training.

The names below are the ways in which pictures are given to `fit`; each is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convolt.data.csv_labels import from_csv
    from convolt.data.folder import ImageFolder
    from convolt.data.huggingface import from_huggingface
    from convolt.data.image_batches import image_dataset_from_directory
    from convolt.data.left_out import SkippedFilesWarning
    from convolt.data.pack import open_pack
    from convolt.data.pack_write import write_pack
    from convolt.data.pictures import Pictures
    from convolt.data.shards import from_tar
    from convolt.data.stream import from_webdataset

__all__ = ["ImageFolder", "Pictures", "SkippedFilesWarning", "from_csv", "from_huggingface", "from_tar", "from_webdataset",
           "image_dataset_from_directory", "open_pack", "write_pack"]

_HOMES = {"ImageFolder": "folder", "Pictures": "pictures", "SkippedFilesWarning": "left_out", "from_csv": "csv_labels",
          "from_huggingface": "huggingface", "from_tar": "shards", "from_webdataset": "stream",
          "image_dataset_from_directory": "image_batches", "open_pack": "pack", "write_pack": "pack_write"}


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use (PEP 562)."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'convolt.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"convolt.data.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
