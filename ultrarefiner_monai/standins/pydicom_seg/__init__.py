"""Stands in for pydicom-seg, which monailabel 0.8.5 imports and nobody calls here.

The real one holds pydicom below 3 and numpy below 2, and with them highdicom and the codecs; its last release is of 2022. DICOM SEGs
are read and written by ``ultrarefiner_monai.dicom``. monailabel's next imports are ITK and SimpleITK (1.7 GB, for functions that
nobody calls) and a client of the Digital Slide Archive: where these are not installed, it gets a module that says so when it is used.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_WORDS = {
    "pydicom_seg": "DICOM SEGs are read and written by ultrarefiner_monai.dicom",
    "itk": "ITK is not installed: pip install itk",
    "SimpleITK": "SimpleITK is not installed: pip install SimpleITK",
    "girder_client": "the Digital Slide Archive is not served here: pip install girder-client",
}


class StandIn(ModuleType):
    """A module without contents; ImportError, with the reason, for whoever asks for one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"{self.__name__}.{name}: {_WORDS[self.__name__]}")


def _stand_in() -> None:
    # MONAI looks for ITK when it is imported, and reads files with it where it is found: it has to look first.
    import monai.data.image_reader  # noqa: F401

    for name in ("itk", "SimpleITK", "girder_client"):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            sys.modules[name] = module = StandIn(name)
            module.__spec__ = ModuleSpec(name, None)


sys.modules[__name__].__class__ = StandIn
_stand_in()
