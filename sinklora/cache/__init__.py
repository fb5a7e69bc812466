"""What a bounded key/value cache keeps (pure PyTorch).

A policy registers itself when its module is imported, so a new one needs no more than a file in this folder:
all modules here are imported with the package, save the kernel, which needs Triton.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    if not _module.name.endswith("_kernel"):
        import_module(f"{__name__}.{_module.name}")
